/* A disk that fails when it is told to: put before libc (LD_PRELOAD), it counts the calls on the files of one database
   and lets chosen ones fail. What it does not strike, and every other file, goes to libc untouched. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* The order of these is known to faults.py. */
enum call { OPEN, READ, WRITE, SYNC, TRUNCATE, LOCK, MAP, STAT, UNLINK, CALLS };
enum file { NONE, DATABASE, WAL, SHM, JOURNAL, COPY, FOLDER, FILES };

enum { DESCRIPTORS = 4096, HALF_IS_WRITTEN = 1 };

static char watched[4096];                   /* the database's path; empty: nothing is watched */
static size_t watched_length;
static _Atomic unsigned char file_of[DESCRIPTORS];
static atomic_long count[CALLS][FILES], hits;
static int armed_call = -1, armed_file, armed_error, armed_shape;
static long armed_first, armed_last;

/* Watch the database at this path, count from nothing, and let nothing fail. */
void fault_watch(const char *path)
{
    armed_call = -1;
    watched_length = strlen(path);
    memcpy(watched, path, watched_length + 1);
    memset((void *)count, 0, sizeof count);
    memset((void *)file_of, 0, sizeof file_of);
    hits = 0;
}

/* Let the calls `first` to `last`, counted from now and from 1, fail with `error`; 0 with HALF_IS_WRITTEN is a short write. */
void fault_arm(int call, int file, long first, long last, int error, int shape)
{
    memset((void *)count, 0, sizeof count);
    hits = 0;
    armed_file = file, armed_first = first, armed_last = last, armed_error = error, armed_shape = shape;
    armed_call = call;
}

void fault_disarm(void) { armed_call = -1; }
long fault_hits(void) { return hits; }
long fault_count(int call, int file) { return count[call][file]; }

static enum file file_at(const char *path)
{
    if (!watched_length || !path) return NONE;
    if (strncmp(path, watched, watched_length)) {
        const char *slash = strrchr(watched, '/');
        size_t folder = slash ? (size_t)(slash - watched) : 0;
        return folder && strlen(path) == folder && !strncmp(path, watched, folder) ? FOLDER : NONE;
    }
    const char *suffix = path + watched_length;
    if (!*suffix) return DATABASE;
    if (!strcmp(suffix, "-wal")) return WAL;
    if (!strcmp(suffix, "-shm")) return SHM;
    if (!strcmp(suffix, "-journal")) return JOURNAL;
    return COPY;
}

static enum file file_on(int fd) { return fd >= 0 && fd < DESCRIPTORS ? file_of[fd] : NONE; }

static int strikes(enum call call, enum file file)
{
    if (file == NONE) return 0;
    long number = ++count[call][file];
    if ((int)call != armed_call || (int)file != armed_file || number < armed_first || number > armed_last) return 0;
    hits++;
    errno = armed_error;
    return 1;
}

#define LIBC(name) \
    static __typeof__(&name) next; \
    if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define FAILS(call, file) \
    if (strikes(call, file)) return -1

#define OPENS(name) \
    int name(const char *path, int flags, ...) \
    { \
        LIBC(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        enum file file = file_at(path); \
        FAILS(OPEN, file); \
        int fd = next(path, flags, mode); \
        if (fd >= 0 && fd < DESCRIPTORS) file_of[fd] = file; \
        return fd; \
    }

OPENS(open)
OPENS(open64)

int close(int fd)
{
    LIBC(close);
    if (fd >= 0 && fd < DESCRIPTORS) file_of[fd] = NONE;
    return next(fd);
}

ssize_t pread64(int fd, void *buffer, size_t bytes, off64_t offset)
{
    LIBC(pread64);
    FAILS(READ, file_on(fd));
    return next(fd, buffer, bytes, offset);
}

ssize_t pwrite64(int fd, const void *buffer, size_t bytes, off64_t offset)
{
    LIBC(pwrite64);
    if (!strikes(WRITE, file_on(fd))) return next(fd, buffer, bytes, offset);
    if (armed_shape == HALF_IS_WRITTEN) {
        ssize_t half = next(fd, buffer, (bytes + 1) / 2, offset);
        if (!armed_error) return half;
    }
    errno = armed_error;
    return -1;
}

int fsync(int fd)
{
    LIBC(fsync);
    FAILS(SYNC, file_on(fd));
    return next(fd);
}

int fdatasync(int fd)
{
    LIBC(fdatasync);
    FAILS(SYNC, file_on(fd));
    return next(fd);
}

int ftruncate64(int fd, off64_t length)
{
    LIBC(ftruncate64);
    FAILS(TRUNCATE, file_on(fd));
    return next(fd, length);
}

#define LOCKS(name) \
    int name(int fd, int command, ...) \
    { \
        LIBC(name); \
        va_list rest; \
        va_start(rest, command); \
        void *argument = va_arg(rest, void *); \
        va_end(rest); \
        /* Letting go of a lock cannot fail on a local file, and SQLite has no answer to it. */ \
        int locks = command == F_SETLK || command == F_SETLKW || command == F_GETLK \
            || command == F_OFD_SETLK || command == F_OFD_SETLKW || command == F_OFD_GETLK; \
        if (locks && ((struct flock *)argument)->l_type != F_UNLCK) FAILS(LOCK, file_on(fd)); \
        return next(fd, command, argument); \
    }

LOCKS(fcntl)
LOCKS(fcntl64)

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    LIBC(mmap64);
    if (strikes(MAP, file_on(fd))) return MAP_FAILED;
    return next(address, length, protection, flags, fd, offset);
}

#define TELLS_OF_FD(name, type) \
    int name(int fd, struct type *found) \
    { \
        LIBC(name); \
        FAILS(STAT, file_on(fd)); \
        return next(fd, found); \
    }

#define TELLS_OF_PATH(name, type) \
    int name(const char *path, struct type *found) \
    { \
        LIBC(name); \
        FAILS(STAT, file_at(path)); \
        return next(path, found); \
    }

TELLS_OF_FD(fstat, stat)
TELLS_OF_FD(fstat64, stat64)
TELLS_OF_PATH(stat, stat)
TELLS_OF_PATH(stat64, stat64)

int unlink(const char *path)
{
    LIBC(unlink);
    FAILS(UNLINK, file_at(path));
    return next(path);
}
