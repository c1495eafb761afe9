/* What every library of the stand-in has: a log of the calls, in the file that STUB_LOG names. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
#include <stddef.h>
#define FN int
static void stub_log(const char* n){ const char* f=getenv("STUB_LOG"); if(!f) return; FILE* o=fopen(f,"a");
  if(o){fprintf(o,"%s\n",n); fclose(o);} }
static void stub_logf(const char* n,long a,long b){ const char* f=getenv("STUB_LOG"); if(!f) return;
  FILE* o=fopen(f,"a"); if(o){fprintf(o,"%s %ld %ld\n",n,a,b); fclose(o);} }
