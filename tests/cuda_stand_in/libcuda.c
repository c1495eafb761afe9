/* The driver, of which our own code takes memory. STUB_FREE: bytes that are free, of 80 GiB. */
FN cuInit(unsigned f){return 0;}
FN cuDeviceGetCount(int*n){*n=1;return 0;}
FN cuDeviceGet(int*d,int n){*d=n;return 0;}
FN cuDevicePrimaryCtxRetain(void**c,int d){*c=(void*)64;return 0;}
FN cuCtxPushCurrent_v2(void*c){return 0;}
FN cuCtxPopCurrent_v2(void**c){return 0;}
static size_t left(void){const char*e=getenv("STUB_FREE");return e?strtoull(e,0,10):79ul<<30;}
FN cuMemGetInfo_v2(size_t*f,size_t*t){*f=left();*t=80ul<<30;return 0;}
FN cuMemAlloc_v2(void**p,size_t n){stub_logf("cuMemAlloc",n,0);if(n>left())return 2;return posix_memalign(p,512,n)?2:0;}
FN cuMemsetD8_v2(void*p,unsigned char v,size_t n){memset(p,v,n);return 0;}
FN cuMemFree_v2(void*p){stub_log("cuMemFree");free(p);return 0;}
FN cuMemHostAlloc(void**p,size_t n,unsigned f){stub_logf("cuMemHostAlloc",n,0);return posix_memalign(p,4096,n)?2:0;}
FN cuMemFreeHost(void*p){stub_log("cuMemFreeHost");free(p);return 0;}
