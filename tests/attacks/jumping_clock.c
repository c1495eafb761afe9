/* Adds the seconds in a file to what the system says of the time of day, and takes them from the ends of waits, which the
   kernel measures by its own clock; the monotonic clock stays. (libfaketime leaves the waits as they are.) */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long jump(void) {
    char text[32] = "";
    int file = open(getenv("JUMPING_CLOCK"), O_RDONLY | O_CLOEXEC);
    if (file >= 0) { if (read(file, text, 31) < 0) text[0] = 0; close(file); }
    return atol(text);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += jump();
    return failed;
}
time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    return now ? (*now = exact.tv_sec) : exact.tv_sec;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec, now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
static struct timespec moved(const struct timespec *until) { /* of the monotonic clock are much less */
    return (struct timespec){until->tv_sec - (until->tv_sec > 1000000000 ? jump() : 0), until->tv_nsec};
}
int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
    int (*wait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    wait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    struct timespec end = moved(until);
    return wait(condition, mutex, &end);
}
int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *until) {
    int (*lock)(pthread_mutex_t *, const struct timespec *) = dlsym(RTLD_NEXT, "pthread_mutex_timedlock");
    struct timespec end = moved(until);
    return lock(mutex, &end);
}
int sem_timedwait(sem_t *semaphore, const struct timespec *until) {
    int (*wait)(sem_t *, const struct timespec *) = dlsym(RTLD_NEXT, "sem_timedwait");
    struct timespec end = moved(until);
    return wait(semaphore, &end);
}
