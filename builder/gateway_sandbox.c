/* What the gateway's process may still ask of the kernel: to use the sockets that it holds, and to
 * open more of IPv4. No file, no program, no other process, no socket of this machine's services.
 */
#include "builder/gateway_loop.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

/* Sanitizers need more, to report what they find. */
#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

#if defined(__x86_64__) && !defined(SANITIZED)

static const int allowed[] = {
    SYS_read,       SYS_write,     SYS_recvfrom,     SYS_sendto,       SYS_accept4,
    SYS_connect,    SYS_shutdown,  SYS_close,        SYS_getsockopt,   SYS_setsockopt,
    SYS_epoll_wait, SYS_epoll_ctl, SYS_epoll_pwait,  SYS_epoll_pwait2, SYS_clock_gettime,
    SYS_getrandom,  SYS_exit,      SYS_rt_sigreturn, SYS_exit_group,   SYS_restart_syscall};

enum { N = sizeof(allowed) / sizeof(allowed[0]), X32_BIT = 0x40000000 };

void gateway_confine(void)
{
    const struct sock_filter refuse =
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (EPERM & SECCOMP_RET_DATA));
    const struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_filter f[2 * N + 16];
    unsigned short n = 0;
    f[n++] =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
    f[n++] = refuse;
    f[n++] =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1);
    f[n++] = refuse;
    for (size_t i = 0; i < N; i++) {
        f[n++] =
            (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)allowed[i], 0, 1);
        f[n++] = allow;
    }
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 1, 0);
    f[n++] = refuse;
    f[n++] =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args));
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_INET, 0, 1);
    f[n++] = allow;
    f[n++] = refuse;
    const struct sock_fprog program = {n, f};
    (void)prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER,
                &program); /* a kernel without it: the rest holds */
}

#else

void gateway_confine(void)
{
}

#endif
