/* The rules of a host with pages of VMMSIM_HOST_PAGE bytes, on a Linux with smaller ones.
 *
 * Loaded with LD_PRELOAD in front of the C library. As a kernel with such pages does:
 *   - mmap gives addresses that are multiples of the page, MAP_FIXED takes no others, and a file offset
 *     is a multiple of it (mmap(2): EINVAL);
 *   - a mapping covers whole pages: what lies between its end and the page's end gets the
 *     file's bytes, and zeros behind the file's end; munmap, mprotect and madvise cover whole pages, too;
 *   - sysconf and getpagesize say so, and the page map has an entry for each such page.
 * Only calls through the C library's symbols are seen; the library's own (malloc, stacks) are not.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REAL 4096UL
#define PRESENT (1ULL << 63)
#define SWAPPED (1ULL << 62)
#define OF_FILE (1ULL << 61)
#define MOST_FDS 65536

static size_t size_of_page;
static unsigned char page_map[MOST_FDS]; /* descriptors that were opened as the page map */

static size_t page(void)
{
    if (!size_of_page) {
        const char *text = getenv("VMMSIM_HOST_PAGE");
        size_t value = text ? strtoul(text, NULL, 0) : REAL;
        size_of_page = value >= REAL ? value : REAL;
    }
    return size_of_page;
}

static size_t up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

static int odd(const void *address) { return (uintptr_t)address % page() != 0; }

static long fail(int number)
{
    errno = number;
    return -1;
}

static void *map(void *at, size_t length, int prot, int flags, int fd, off_t offset)
{
    return (void *)syscall(SYS_mmap, at, length, prot, flags, fd, offset);
}

/* Of the bytes from `offset` on, those up to the end of the file's last real page; all of what is no file. */
static size_t in_file(int fd, off_t offset, size_t length)
{
    struct stat status;
    if (fstat(fd, &status) || !S_ISREG(status.st_mode))
        return length;
    size_t end = up((size_t)status.st_size, REAL), from = (size_t)offset;
    size_t there = end > from ? end - from : 0;
    return there < up(length, page()) ? there : up(length, page());
}

void *mmap(void *at, size_t length, int prot, int flags, int fd, off_t offset)
{
    int fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE);
    size_t unit = page();
    if (!length || offset % (off_t)unit || (fixed && odd(at)))
        return (void *)fail(EINVAL);
    size_t whole = up(length, unit);
    if (!fixed) { /* room at an address of a page */
        char *room = map(NULL, whole + unit, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (room == MAP_FAILED)
            return MAP_FAILED;
        char *begin = (char *)up((uintptr_t)room, unit);
        if (begin > room)
            syscall(SYS_munmap, room, begin - room);
        if (begin + whole < room + whole + unit)
            syscall(SYS_munmap, begin + whole, room + whole + unit - (begin + whole));
        at = begin;
    }
    int how = flags | (flags & MAP_FIXED_NOREPLACE ? 0 : MAP_FIXED);
    size_t part = flags & MAP_ANONYMOUS ? whole : in_file(fd, offset, length);
    size_t least = part < length ? length : part; /* a mapping beyond the file's end is the kernel's business */
    void *done = map(at, least, prot, how, fd, offset);
    if (done == MAP_FAILED) {
        int number = errno;
        if (!fixed)
            syscall(SYS_munmap, at, whole);
        errno = number;
        return MAP_FAILED;
    }
    struct stat status;
    if (!(flags & MAP_ANONYMOUS) && up(least, REAL) < whole && !fstat(fd, &status) && S_ISREG(status.st_mode))
        map((char *)at + up(least, REAL), whole - up(least, REAL), prot,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    return done;
}

void *mmap64(void *at, size_t length, int prot, int flags, int fd, off_t offset)
{
    return mmap(at, length, prot, flags, fd, offset);
}

int munmap(void *at, size_t length)
{
    return odd(at) ? (int)fail(EINVAL) : (int)syscall(SYS_munmap, at, up(length, page()));
}

int mprotect(void *at, size_t length, int prot)
{
    return odd(at) ? (int)fail(EINVAL) : (int)syscall(SYS_mprotect, at, up(length, page()), prot);
}

int madvise(void *at, size_t length, int advice)
{
    return odd(at) ? (int)fail(EINVAL) : (int)syscall(SYS_madvise, at, up(length, page()), advice);
}

int msync(void *at, size_t length, int flags)
{
    return odd(at) ? (int)fail(EINVAL) : (int)syscall(SYS_msync, at, up(length, page()), flags);
}

int getpagesize(void) { return (int)page(); }

long sysconf(int name)
{
    static long (*next)(int);
    if (name == _SC_PAGESIZE)
        return (long)page();
    if (!next) {
        extern void *dlsym(void *, const char *);
        next = (long (*)(int))dlsym((void *)-1L /* RTLD_NEXT */, "sysconf");
    }
    long found = next(name);
    if (name == _SC_PHYS_PAGES || name == _SC_AVPHYS_PAGES)
        found /= (long)(page() / REAL);
    return found;
}

static int opened(const char *path, int fd)
{
    if (fd >= 0 && fd < MOST_FDS)
        page_map[fd] = !strcmp(path, "/proc/self/pagemap");
    return fd;
}

int open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    if (flags & (O_CREAT | O_TMPFILE)) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    return opened(path, (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

int open64(const char *path, int flags, ...)
{
    mode_t mode = 0;
    if (flags & (O_CREAT | O_TMPFILE)) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    return opened(path, (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

static int is_page_map(int fd)
{
    char link[64], path[64];
    if (fd < 0 || fd >= MOST_FDS || !page_map[fd])
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return length > 8 && !memcmp(path + length - 8, "/pagemap", 8);
}

/* An entry for each page of ours: that of a part with bytes of its own, else of one that is there. */
static ssize_t read_page_map(int fd, uint64_t *out, size_t count, off_t at)
{
    size_t parts = page() / REAL, entries = count / 8, done = 0;
    uint64_t real[16 * 64];
    size_t most = sizeof real / 8 / parts;
    while (done < entries) {
        size_t now = entries - done < most ? entries - done : most;
        off_t from = (at + (off_t)done * 8) * (off_t)parts;
        ssize_t got = syscall(SYS_pread64, fd, real, now * parts * 8, from);
        if (got <= 0)
            return done ? (ssize_t)(done * 8) : got;
        now = (size_t)got / 8 / parts;
        for (size_t i = 0; i < now; i++) {
            uint64_t entry = 0;
            for (size_t k = 0; k < parts; k++) {
                uint64_t part = real[i * parts + k];
                int own = (part & SWAPPED) || ((part & PRESENT) && !(part & OF_FILE));
                if (own || (!entry && (part & PRESENT)))
                    entry = part;
                if (own)
                    break;
            }
            out[done + i] = entry;
        }
        if (!now)
            break;
        done += now;
    }
    return (ssize_t)(done * 8);
}

ssize_t pread(int fd, void *out, size_t count, off_t at)
{
    if (is_page_map(fd))
        return read_page_map(fd, out, count, at);
    return syscall(SYS_pread64, fd, out, count, at);
}

ssize_t pread64(int fd, void *out, size_t count, off_t at) { return pread(fd, out, count, at); }
