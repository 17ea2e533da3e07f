/* Preloaded library for `cargo xtask torture`: fails a file operation of the program, or kills the program before it.
 *
 * ADW_FAULT=ACTION:N   acts on operation N, counted from 1 over all threads. ACTION is
 *     kill     SIGKILL before the operation; a write leaves the first half of its bytes
 *     eio      the operation fails with EIO
 *     enospc   the operation fails with ENOSPC
 *     full     this and every later operation that takes space fails with ENOSPC
 * ADW_FAULT_COUNT=FILE counts in the first eight bytes of FILE, together with other processes.
 *
 * Counted are operations that change a disk: opening for writing, writes to regular files, truncation, syncs, renames, removals
 * of files and folders, new folders. Reads, sockets, pipes and standard streams are left alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum action { NONE, KILL, EIO_ONCE, ENOSPC_ONCE, FULL };

static enum action action = NONE;
static long target = -1;
static atomic_long of_process;
static atomic_long *operations = &of_process;

__attribute__((constructor)) static void read_environment(void) {
    static const char *const names[] = {"", "kill", "eio", "enospc", "full"};
    const char *fault = getenv("ADW_FAULT");
    const char *colon = fault ? strchr(fault, ':') : NULL;
    for (int i = KILL; colon && i <= FULL; i++)
        if (strlen(names[i]) == (size_t)(colon - fault) && strncmp(names[i], fault, colon - fault) == 0) {
            action = i;
            target = atol(colon + 1);
        }
    /* By the system's own call: the opening is not to be counted. */
    const char *path = getenv("ADW_FAULT_COUNT");
    int fd = path ? syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *shared = mmap(NULL, sizeof *operations, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (shared != MAP_FAILED)
        operations = shared;
}

/* Counts an operation. Returns the error number that it must fail with, or 0. Does not return after a kill. */
static int fault(int takes_space, int fd, const void *bytes, size_t length) {
    static ssize_t (*real_write)(int, const void *, size_t);
    long n = atomic_fetch_add(operations, 1) + 1;
    if (action == FULL && n >= target && takes_space)
        return ENOSPC;
    if (n != target)
        return 0;
    switch (action) {
    case KILL:
        if (bytes && length > 1) {
            if (!real_write)
                real_write = dlsym(RTLD_NEXT, "write");
            if (real_write(fd, bytes, length / 2) < 0)
                _exit(99);
        }
        raise(SIGKILL);
        return 0;
    case EIO_ONCE:
        return EIO;
    case ENOSPC_ONCE:
        return ENOSPC;
    default:
        return 0;
    }
}

static int regular(int fd) {
    struct stat found;
    return fd > 2 && fstat(fd, &found) == 0 && S_ISREG(found.st_mode);
}

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)); }

/* Streams and devices are not on a disk. */
static int on_disk(const char *path) { return strncmp(path, "/dev/", 5) != 0 && strncmp(path, "/proc/", 6) != 0; }

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define FAIL_IF(counted, takes_space, fd, bytes, length) \
    if (counted) { \
        int failure = fault(takes_space, fd, bytes, length); \
        if (failure) { \
            errno = failure; \
            return -1; \
        } \
    }

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        MODE(flags) \
        FAIL_IF(writes(flags) && on_disk(path), flags & O_CREAT, -1, NULL, 0) \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        REAL(name); \
        MODE(flags) \
        FAIL_IF(writes(flags) && on_disk(path), flags & O_CREAT, -1, NULL, 0) \
        return real(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *bytes, size_t length) {
    REAL(write);
    FAIL_IF(regular(fd), 1, fd, bytes, length)
    return real(fd, bytes, length);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    FAIL_IF(regular(fd), 1, fd, NULL, 0)
    return real(fd, parts, count);
}

#define PWRITE(name) \
    ssize_t name(int fd, const void *bytes, size_t length, off_t offset) { \
        REAL(name); \
        FAIL_IF(regular(fd), 1, -1, NULL, 0) \
        return real(fd, bytes, length, offset); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define ON_FD(name, takes_space, ...) \
    int name(int fd __VA_OPT__(, ) __VA_ARGS__) { \
        REAL(name); \
        FAIL_IF(fd > 2, takes_space, -1, NULL, 0) \
        return real(fd __VA_OPT__(, length)); \
    }
ON_FD(fsync, 0)
ON_FD(fdatasync, 0)
ON_FD(ftruncate, 1, off_t length)
ON_FD(ftruncate64, 1, off_t length)

int rename(const char *from, const char *to) {
    REAL(rename);
    FAIL_IF(1, 1, -1, NULL, 0)
    return real(from, to);
}

int link(const char *from, const char *to) {
    REAL(link);
    FAIL_IF(1, 1, -1, NULL, 0)
    return real(from, to);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    FAIL_IF(1, 1, -1, NULL, 0)
    return real(path, mode);
}

int unlink(const char *path) {
    REAL(unlink);
    FAIL_IF(1, 0, -1, NULL, 0)
    return real(path);
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    FAIL_IF(1, 0, -1, NULL, 0)
    return real(folder, path, flags);
}

int rmdir(const char *path) {
    REAL(rmdir);
    FAIL_IF(1, 0, -1, NULL, 0)
    return real(path);
}

ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t length, unsigned flags) {
    REAL(copy_file_range);
    FAIL_IF(1, 1, -1, NULL, 0)
    return real(in, in_at, out, out_at, length, flags);
}
