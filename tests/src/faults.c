/* Between a program and its C library: delays and failures of what it asks of a disk.
 *
 * FAULTS_CONTROL names a file with four numbers: milliseconds that each fsync takes, an error number, the
 * first write to fail with it (counted from 1 over the program's life) and how many. Only files below
 * FAULTS_BELOW are touched. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long writes;

static int below(const char *path) {
    const char *prefix = getenv("FAULTS_BELOW");
    return prefix && strncmp(path, prefix, strlen(prefix)) == 0;
}

static int fd_below(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

static void control(long *delay_ms, int *error, long *nth, long *count) {
    *delay_ms = *error = *nth = *count = 0;
    const char *path = getenv("FAULTS_CONTROL");
    int fd = path ? open(path, O_RDONLY) : -1;
    if (fd < 0) return;
    char text[128];
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) return;
    text[n] = 0;
    sscanf(text, "%ld %d %ld %ld", delay_ms, error, nth, count);
}

/* True: this write fails, with errno set. */
static int fails(void) {
    long delay_ms, nth, count;
    int error;
    control(&delay_ms, &error, &nth, &count);
    long mine = __atomic_add_fetch(&writes, 1, __ATOMIC_RELAXED);
    if (error == 0 || mine < nth || mine >= nth + count) return 0;
    errno = error;
    return 1;
}

static void delay(int fd) {
    long delay_ms, nth, count;
    int error;
    if (!fd_below(fd)) return;
    control(&delay_ms, &error, &nth, &count);
    if (delay_ms > 0) usleep((useconds_t)(delay_ms * 1000));
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *bytes, size_t n) {
    REAL(write);
    if (fd > 2 && fd_below(fd) && fails()) return -1;
    return real(fd, bytes, n);
}

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) {
    REAL(pwrite);
    if (fd_below(fd) && fails()) return -1;
    return real(fd, bytes, n, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at) {
    REAL(pwrite64);
    if (fd_below(fd) && fails()) return -1;
    return real(fd, bytes, n, at);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    if (below(to) && fails()) return -1;
    return real(from, to);
}

int fsync(int fd) {
    REAL(fsync);
    delay(fd);
    if (fd_below(fd) && fails()) return -1;
    return real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    delay(fd);
    if (fd_below(fd) && fails()) return -1;
    return real(fd);
}
