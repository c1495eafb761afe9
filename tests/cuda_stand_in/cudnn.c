FN cudnnCreate(void**h){*h=(void*)0x1000;return 0;}
unsigned long cudnnGetVersion(void){return 91000;}
char* cudnnGetErrorString(int e){return "stub";}
FN cudnnSetStream(void){return 0;}
FN cudnnBackendCreateDescriptor(int t,void**d){*d=malloc(64);return 0;}
FN cudnnBackendDestroyDescriptor(void*d){free(d);return 0;}
/* one engine without knobs (302), notes or workspace; of the types 3 is int64, 15 a descriptor, 23 int32 */
FN cudnnBackendGetAttribute(void*d,int name,int type,long asked,long*n,void*a){
 if(n)*n=(type==3||type==15||type==23)&&name!=302;
 if(type==3&&asked&&a)*(long*)a=0;
 if(type==23&&asked&&a)*(int*)a=0;
 return 0;}
FN cudnnBackendExecute(void*h,void*p,void*v){stub_log("cudnnBackendExecute");return getenv("STUB_FAILURE")?5000:0;}
