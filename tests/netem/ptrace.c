// Preloaded into user-mode Linux where the processor's register state is larger than that kernel knows.
//
// Kernels before 6.13 write as much of the floating point state as they were built for; on processors with a
// large xsave area (AVX-512, AMX) the host takes the whole of it or nothing (EFAULT), and user-mode Linux
// dies at once. So the whole is read first, the shorter laid over it, and the whole written.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

long ptrace(enum __ptrace_request request, ...)
{
    static long (*real)(enum __ptrace_request, ...);
    static char whole[65536];
    va_list args;
    va_start(args, request);
    pid_t pid = va_arg(args, pid_t);
    void *address = va_arg(args, void *);
    void *data = va_arg(args, void *);
    va_end(args);
    if (!real)
        real = (long (*)(enum __ptrace_request, ...))dlsym(RTLD_NEXT, "ptrace");
    if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE) {
        struct iovec *given = data, all = {whole, sizeof whole};
        if (real(PTRACE_GETREGSET, pid, address, &all) == 0 && all.iov_len > given->iov_len) {
            memcpy(whole, given->iov_base, given->iov_len);
            return real(PTRACE_SETREGSET, pid, address, &all);
        }
    }
    return real(request, pid, address, data);
}
