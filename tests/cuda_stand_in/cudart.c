/* Memory of the host in place of the device, the numbers of an H100, and a log of launches and copies.
   STUB_CC: compute capability (90). STUB_FAILURE: what waiting for the device answers, as after an error there. */
static int ccenv(int i){const char*e=getenv("STUB_CC"); if(!e) return i?0:9; int v=atoi(e); return i? v%10 : v/10;}
#define CCM ccenv(0)
#define CCN ccenv(1)
typedef struct {unsigned x,y,z;} dim3;
static struct {char*p; size_t n;} R[65536]; static int nR;
static int isdev(const void*p){for(int i=0;i<nR;i++) if(R[i].p&&(char*)p>=R[i].p&&(char*)p<R[i].p+R[i].n) return 1;
  return 0;}
static void* dalloc(size_t n){void*p=0; if(posix_memalign(&p,512,n?n:512)) return 0; memset(p,0,n<(1<<26)?n:0);
  for(int i=0;i<65536;i++) if(!R[i].p){R[i].p=p;R[i].n=n; if(i>=nR)nR=i+1; break;} return p;}
static void dfree(void*p){for(int i=0;i<nR;i++) if(R[i].p==p){R[i].p=0;break;} free(p);}
FN cudaGetDeviceCount(int*n){*n=1;return 0;}
FN cudaGetDevice(int*n){*n=0;return 0;}
FN cudaSetDevice(int n){return 0;}
FN cudaDriverGetVersion(int*v){*v=CUDA13?13000:12080;return 0;}
FN cudaRuntimeGetVersion(int*v){*v=CUDA13?13000:12080;return 0;}
static int props(char*p){memset(p,0,1008); strcpy(p,"STUB H100"); *(size_t*)(p+288)=80ul<<30; *(size_t*)(p+296)=49152;
  *(int*)(p+304)=65536; *(int*)(p+308)=32; *(size_t*)(p+312)=2147483647; *(int*)(p+320)=1024;
 int*d=(int*)(p+324); d[0]=1024;d[1]=1024;d[2]=64; d=(int*)(p+336); d[0]=2147483647;d[1]=65535;d[2]=65535;
#if CUDA13
 *(size_t*)(p+352)=65536; *(int*)(p+360)=CCM; *(int*)(p+364)=CCN; *(size_t*)(p+368)=512; *(size_t*)(p+376)=32;
  *(int*)(p+384)=132;
#else
 *(int*)(p+348)=1980000; *(size_t*)(p+352)=65536; *(int*)(p+360)=CCM; *(int*)(p+364)=CCN; *(size_t*)(p+368)=512;
  *(size_t*)(p+376)=32; *(int*)(p+384)=1; *(int*)(p+388)=132;
#endif
 for(int i=392;i<900;i+=8)*(size_t*)(p+i)=232448;
 return 0;}
FN cudaGetDeviceProperties(char*p,int d){props(p); int smpm=233472; 
 /* sharedMemPerBlockOptin etc: set by attribute instead */ return 0;}
FN cudaGetDeviceProperties_v2(char*p,int d){props(p); *(size_t*)(p+ 0 + 640)=233472; return 0;}
FN cudaDeviceGetAttribute(int*v,int a,int d){switch(a){case 75:*v=CCM;break;case 76:*v=CCN;break;case 16:*v=132;break;
  case 97:*v=232448;break;case 81:*v=233472;break;case 115:*v=1;break;case 10:*v=32;break;case 1:*v=1024;break;
  case 8:*v=49152;break;case 39:*v=2048;break;case 38:*v=50<<20;break;case 12:*v=65536;break;case 82:*v=65536;break;
  case 95:*v=1;break;case 106:*v=32;break;default:*v=1; stub_logf("attr",a,0);}return 0;}
FN cudaMemGetInfo(size_t*f,size_t*t){*f=79ul<<30;*t=80ul<<30;return 0;}
FN cudaMalloc(void**p,size_t n){*p=dalloc(n);stub_logf("cudaMalloc",n,0);return 0;}
FN cudaMallocAsync(void**p,size_t n,void*s){*p=dalloc(n);stub_logf("cudaMallocAsync",n,0);return 0;}
FN cudaMallocFromPoolAsync(void**p,size_t n,void*pool,void*s){*p=dalloc(n);stub_logf("cudaMallocFromPoolAsync",n,0);
  return 0;}
FN cudaFree(void*p){dfree(p);return 0;}
FN cudaFreeAsync(void*p,void*s){dfree(p);return 0;}
FN cudaMallocHost(void**p,size_t n){return posix_memalign(p,4096,n?n:64);}
FN cudaHostAlloc(void**p,size_t n,unsigned f){return posix_memalign(p,4096,n?n:64);}
FN cudaFreeHost(void*p){free(p);return 0;}
static const char*K[]={"H2H","H2D","D2H","D2D","DEF"};
static void lc(const char*w,size_t n,int k){char b[64];snprintf(b,64,"%s_%s",w,K[k&7]);stub_logf(b,n,0);}
FN cudaMemcpy(void*d,const void*s,size_t n,int k){lc("memcpy",n,k);memmove(d,s,n);return 0;}
FN cudaMemcpyAsync(void*d,const void*s,size_t n,int k,void*st){lc("memcpyAsync",n,k);memmove(d,s,n);return 0;}
FN cudaMemcpy2DAsync(char*d,size_t dp,const char*s,size_t sp,size_t w,size_t h,int k,void*st){lc("memcpy2DAsync",w*h,
  k);for(size_t i=0;i<h;i++)memmove(d+i*dp,s+i*sp,w);return 0;}
FN cudaMemset(void*p,int v,size_t n){stub_logf("memset",n,0);memset(p,v,n);return 0;}
FN cudaMemsetAsync(void*p,int v,size_t n,void*s){stub_logf("memsetAsync",n,0);memset(p,v,n);return 0;}
static long cnt=4096;
FN cudaStreamCreate(void**s){*s=(void*)(cnt+=64);return 0;}
FN cudaStreamCreateWithFlags(void**s,unsigned f){*s=(void*)(cnt+=64);return 0;}
FN cudaEventCreate(void**s){*s=(void*)(cnt+=64);return 0;}
FN cudaEventCreateWithFlags(void**s,unsigned f){*s=(void*)(cnt+=64);return 0;}
FN cudaStreamSynchronize(void*s){stub_log("streamSync");return getenv("STUB_FAILURE")?atoi(getenv("STUB_FAILURE")):0;}
FN cudaDeviceSynchronize(void){stub_log("deviceSync");return 0;}
FN cudaEventSynchronize(void*s){stub_log("eventSync");return 0;}
FN cudaStreamIsCapturing(void*s,int*st){*st=0;return 0;}
FN cudaStreamQuery(void*s){return 0;}
FN cudaEventQuery(void*s){return 0;}
FN cudaEventElapsedTime(float*f,void*a,void*b){*f=1;return 0;}
FN cudaEventRecord(void*a,void*b){return 0;}
FN cudaEventRecordWithFlags(void*a,void*b,unsigned f){return 0;}
FN cudaEventDestroy(void*a){return 0;}
FN cudaStreamWaitEvent(void*a,void*b,unsigned f){return 0;}
FN cudaGetLastError(void){return getenv("STUB_FAILURE")?atoi(getenv("STUB_FAILURE")):0;}
FN cudaPeekAtLastError(void){return 0;}
char* cudaGetErrorString(int e){return "stub";}
char* cudaGetErrorName(int e){return "stub";}
struct pa{int type;int device;void*d;void*h;long r[8];};
FN cudaPointerGetAttributes(struct pa*a,const void*p){a->type=isdev(p)?2:0;a->device=0;a->d=(void*)p;a->h=(void*)p;
  return 0;}
struct fa{size_t sh,co,lo;int maxT,regs,ptx,bin,cache,maxdyn,pref;};
FN cudaFuncGetAttributes(struct fa*a,const void*f){a->sh=0;a->co=0;a->lo=0;a->maxT=1024;a->regs=64;a->ptx=90;
  a->bin=90;a->cache=0;a->maxdyn=232448;a->pref=-1;return 0;}
FN cudaFuncSetAttribute(const void*f,int a,int v){return 0;}
FN cudaOccupancyMaxActiveBlocksPerMultiprocessor(int*n,const void*f,int b,size_t s){*n=2;return 0;}
FN cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int*n,const void*f,int b,size_t s,unsigned fl){*n=2;
  return 0;}
static struct {const void*h;char*n;} F[200000]; static int nF;
FN __cudaRegisterFunction(void**h,const char*hf,char*df,const char*dn,int tl,void*a,void*b,void*c,void*d,
  int*e){if(nF<200000){F[nF].h=hf;F[nF].n=strdup(dn);nF++;}return 0;}
static int cmpF(const void*a,const void*b){const void*x=*(const void**)a,*y=*(const void**)b;return x<y?-1:x>y;}
static int sortedn;
static char* nm(const void*f){ if(sortedn!=nF){qsort(F,nF,sizeof F[0],cmpF);sortedn=nF;} int l=0,r=nF-1;
  while(l<=r){int m=(l+r)/2; if(F[m].h==f)return F[m].n; if(F[m].h<f)l=m+1; else r=m-1;} return "unknown";}
static void lk(const void*f,dim3 g,dim3 b){const char* e=getenv("STUB_LOG"); if(!e)return; FILE*o=fopen(e,"a");
  if(o){fprintf(o,"KERNEL %s grid %u,%u,%u\n",nm(f),g.x,g.y,g.z);fclose(o);}}
void** __cudaRegisterFatBinary(void*f){static void*x[4];return x;}
FN __cudaRegisterFatBinaryEnd(void**h){return 0;}
FN __cudaUnregisterFatBinary(void**h){return 0;}
FN __cudaRegisterVar(void**h){return 0;}
static __thread struct{dim3 g,b;size_t s;void*st;} C;
unsigned __cudaPushCallConfiguration(dim3 g,dim3 b,size_t s,void*st){C.g=g;C.b=b;C.s=s;C.st=st;return 0;}
FN __cudaPopCallConfiguration(dim3*g,dim3*b,size_t*s,void*st){*g=C.g;*b=C.b;*s=C.s;*(void**)st=C.st;return 0;}
FN __cudaGetKernel(void**k,const void*f){*k=(void*)f;return 0;}
FN __cudaLaunchKernel(const void*f,dim3 g,dim3 b,void**a,size_t s,void*st){lk(f,g,b);return 0;}
FN cudaLaunchKernel(const void*f,dim3 g,dim3 b,void**a,size_t s,void*st){lk(f,g,b);return 0;}
FN cudaLaunchCooperativeKernel(const void*f,dim3 g,dim3 b,void**a,size_t s,void*st){lk(f,g,b);return 0;}
struct lc13{dim3 g,b;};
FN cudaLaunchKernelExC(struct lc13*c,const void*f,void**a){lk(f,c->g,c->b);return 0;}
FN cudaLaunchHostFunc(void*s,void(*f)(void*),void*u){f(u);return 0;}
FN cudaGetDriverEntryPointByVersion(const char*s,void**f,unsigned v,unsigned long fl,
  int*st){*f=(void*)cudaDeviceSynchronize; if(st)*st=0;return 0;}
FN cudaGetDriverEntryPoint(const char*s,void**f,unsigned long fl,int*st){*f=(void*)cudaDeviceSynchronize; if(st)*st=0;
  return 0;}
FN cudaMemPoolCreate(void**p,void*x){*p=(void*)(cnt+=64);return 0;}
FN cudaMemPoolGetAttribute(void*p,int a,unsigned long*v){*v=0;return 0;}
FN cudaDeviceGetDefaultMemPool(void**p,int d){*p=(void*)(cnt+=64);return 0;}
FN cudaLibraryLoadData(void**p){*p=(void*)(cnt+=64);return 0;}
FN cudaLibraryGetKernel(void**p){*p=(void*)(cnt+=64);return 0;}
