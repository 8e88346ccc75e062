/* Preloaded into a process: writes down, in the order in which they were done, each change that the process makes to the
 * files of one folder and each sync of them. Knows nothing of SQLite but the name of the index that no crash outlives.
 *
 * POWER_FOLDER is the folder (its real path), POWER_LOG the file of records; see record.py. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, UNLINK, WRITE, TRUNCATE, SYNC_BEGINS, SYNC_ENDS, MARK, FOUND };
enum { FOLDER = 1, MOST_DESCRIPTORS = 4096, MOST_NAMES = 64, LONGEST_NAME = 128 };

struct record { uint32_t kind, file; int64_t at; uint64_t size; }; /* `size` bytes follow */
struct name { char text[LONGEST_NAME]; uint32_t file; };

/* Guards all below. A change and its record are made under it, so that their orders agree; a sync is not, or it would hold
 * up writes that run beside it: what was written between its two records may or may not be covered. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t files[MOST_DESCRIPTORS]; /* of each descriptor; 0 for what is not recorded */
static struct name names[MOST_NAMES];
static uint32_t last_file = FOLDER;
static int log_fd = -1;

#define REAL(result, name, ...)                                  \
    static result (*real)(__VA_ARGS__);                          \
    if (real == NULL) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static void stop(const char *why) {
    (void)!write(STDERR_FILENO, why, strlen(why));
    abort();
}

static int open_log(const char *path) {
    REAL(int, open, const char *, int, ...);
    return real(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void record(uint32_t kind, uint32_t file, int64_t at, const void *data, size_t size) {
    struct record head = {kind, file, at, size};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)data, size}};
    if (log_fd < 0) log_fd = open_log(getenv("POWER_LOG"));
    if (writev(log_fd, parts, 2) != (ssize_t)(sizeof head + size)) stop("the record cannot be written\n");
}

/* The name of a file in the folder, "" for the folder itself, NULL for what is not recorded. */
static const char *name_of(const char *path) {
    const char *folder = getenv("POWER_FOLDER");
    size_t length = folder == NULL ? 0 : strlen(folder);
    if (length == 0 || strncmp(path, folder, length) != 0) return NULL;
    if (path[length] == '\0') return "";
    const char *name = path + length + 1;
    size_t size = strlen(name);
    if (path[length] != '/' || strchr(name, '/') || size >= LONGEST_NAME) return NULL;
    return size > 4 && strcmp(name + size - 4, "-shm") == 0 ? NULL : name;
}

/* The place of a name; `kind` is recorded where it is a new one. */
static struct name *place_of(const char *name, uint32_t kind) {
    struct name *place = NULL;
    for (int i = 0; i < MOST_NAMES; i++) {
        if (names[i].file != 0 && strcmp(names[i].text, name) == 0) return &names[i];
        if (names[i].file == 0 && place == NULL) place = &names[i];
    }
    if (place == NULL) stop("more files than the recorder has names for\n");
    place->file = ++last_file;
    strcpy(place->text, name);
    record(kind, place->file, 0, name, strlen(name));
    return place;
}

static uint32_t file_of(int fd) { return fd >= 0 && fd < MOST_DESCRIPTORS ? files[fd] : 0; }

static void opened(int fd, const char *name, int flags, int existed) {
    if (fd < 0) return;
    if (fd >= MOST_DESCRIPTORS) stop("more descriptors than the recorder has places for\n");
    files[fd] = *name == '\0' ? FOLDER : place_of(name, existed ? FOUND : CREATE)->file;
    if (flags & O_TRUNC) record(TRUNCATE, files[fd], 0, NULL, 0);
}

#define OPEN(open)                                               \
    int open(const char *path, int flags, ...) {                 \
        REAL(int, open, const char *, int, ...);                 \
        va_list arguments;                                       \
        va_start(arguments, flags);                              \
        int mode = flags & O_CREAT ? va_arg(arguments, int) : 0; \
        va_end(arguments);                                       \
        const char *name = name_of(path);                        \
        if (name == NULL) return real(path, flags, mode);        \
        pthread_mutex_lock(&lock);                               \
        int existed = access(path, F_OK) == 0;                   \
        int fd = real(path, flags, mode);                        \
        opened(fd, name, flags, existed);                        \
        pthread_mutex_unlock(&lock);                             \
        return fd;                                               \
    }

#define PWRITE(pwrite, offset)                                                    \
    ssize_t pwrite(int fd, const void *data, size_t size, offset at) {            \
        REAL(ssize_t, pwrite, int, const void *, size_t, offset);                 \
        if (file_of(fd) == 0) return real(fd, data, size, at);                    \
        pthread_mutex_lock(&lock);                                                \
        ssize_t written = real(fd, data, size, at);                               \
        if (written > 0) record(WRITE, file_of(fd), at, data, (size_t)written);   \
        pthread_mutex_unlock(&lock);                                              \
        return written;                                                           \
    }

#define FTRUNCATE(ftruncate, offset)                                 \
    int ftruncate(int fd, offset size) {                             \
        REAL(int, ftruncate, int, offset);                           \
        if (file_of(fd) == 0) return real(fd, size);                 \
        pthread_mutex_lock(&lock);                                   \
        int failed = real(fd, size);                                 \
        if (!failed) record(TRUNCATE, file_of(fd), size, NULL, 0);   \
        pthread_mutex_unlock(&lock);                                 \
        return failed;                                               \
    }

#define SYNC(fsync)                                                  \
    int fsync(int fd) {                                              \
        static int64_t last;                                         \
        REAL(int, fsync, int);                                       \
        uint32_t file = file_of(fd);                                 \
        if (file == 0) return real(fd);                              \
        pthread_mutex_lock(&lock);                                   \
        int64_t ticket = ++last;                                     \
        record(SYNC_BEGINS, file, ticket, #fsync, strlen(#fsync));   \
        pthread_mutex_unlock(&lock);                                 \
        int failed = real(fd);                                       \
        pthread_mutex_lock(&lock);                                   \
        if (!failed) record(SYNC_ENDS, file, ticket, #fsync, strlen(#fsync)); \
        pthread_mutex_unlock(&lock);                                 \
        return failed;                                               \
    }

OPEN(open)
PWRITE(pwrite, off_t)
FTRUNCATE(ftruncate, off_t)
#ifdef __GLIBC__
OPEN(open64)
PWRITE(pwrite64, off64_t)
FTRUNCATE(ftruncate64, off64_t)
#endif
SYNC(fsync)
SYNC(fdatasync)

int unlink(const char *path) {
    REAL(int, unlink, const char *);
    const char *name = name_of(path);
    if (name == NULL || *name == '\0') return real(path);
    pthread_mutex_lock(&lock);
    int failed = real(path);
    if (!failed) {
        struct name *place = place_of(name, FOUND);
        record(UNLINK, place->file, 0, name, strlen(name));
        place->file = 0;
    }
    pthread_mutex_unlock(&lock);
    return failed;
}

int close(int fd) {
    REAL(int, close, int);
    if (file_of(fd) != 0) {
        pthread_mutex_lock(&lock);
        files[fd] = 0;
        pthread_mutex_unlock(&lock);
    }
    return real(fd);
}

/* Called by the recorded program: what it has told the world by now. */
void power_mark(const char *text) {
    pthread_mutex_lock(&lock);
    record(MARK, 0, 0, text, strlen(text));
    pthread_mutex_unlock(&lock);
}
