// Preloaded into programs that QEMU runs, where QEMU alone is not as the kernel is. What they start, if it is for ARM too, is
// started in QEMU, of which the kernel need not know (binfmt_misc needs root); CELLGATE_QEMU says where QEMU is. An ioctl that
// QEMU does not know is one that the file does not have.
//
//     aarch64-linux-gnu-gcc -O1 -fPIC -shared -o preload.so preload.c
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int is_arm(const char* file) {
    Elf64_Ehdr header;
    const int from = strchr(file, '/') ? open(file, O_RDONLY | O_CLOEXEC) : -1;
    if (from < 0) return 0;
    const ssize_t got = read(from, &header, sizeof header);
    close(from);
    return got == sizeof header && !memcmp(header.e_ident, ELFMAG, SELFMAG) && header.e_machine == EM_AARCH64;
}

static size_t count(char* const list[]) {
    size_t n = 0;
    while (list[n]) ++n;
    return n;
}

typedef int Start(void* with, const char* file, char* const argv[], char* const envp[]);

// Starts `file` in QEMU, or as it is and without what is preloaded here, which other machines' programs cannot load.
static int start(Start* how, void* with, const char* file, char* const argv[], char* const envp[]) {
    const char* qemu = getenv("CELLGATE_QEMU");
    if (qemu && is_arm(file)) {
        char* arguments[count(argv) + 4];
        arguments[0] = (char*)qemu;
        arguments[1] = "-0";
        arguments[2] = argv[0];
        arguments[3] = (char*)file;
        memcpy(arguments + 4, argv + 1, count(argv) * sizeof *argv);
        return how(with, qemu, arguments, envp);
    }
    char* variables[count(envp) + 1];
    size_t kept = 0;
    for (char* const* each = envp; *each; ++each)
        if (strncmp(*each, "LD_PRELOAD=", 11)) variables[kept++] = *each;
    variables[kept] = NULL;
    return how(with, file, argv, variables);
}

struct Spawn {
    pid_t* pid;
    const posix_spawn_file_actions_t* actions;
    const posix_spawnattr_t* attributes;
};

static int spawn(void* with, const char* file, char* const argv[], char* const envp[]) {
    typedef int Spawner(pid_t*, const char*, const posix_spawn_file_actions_t*, const posix_spawnattr_t*, char* const[], char* const[]);
    const struct Spawn* what = with;
    return ((Spawner*)dlsym(RTLD_NEXT, "posix_spawnp"))(what->pid, file, what->actions, what->attributes, argv, envp);
}

static int execute(void* with, const char* file, char* const argv[], char* const envp[]) {
    (void)with;
    return execvpe(file, argv, envp);
}

// QEMU forks where posix_spawn shares memory, so that an error of the child's exec would not come back.
static int can_run(const char* file) {
    if (strchr(file, '/')) return !access(file, X_OK);
    const char* folder = getenv("PATH");
    while (folder && *folder) {
        char path[4096];
        const int length = strcspn(folder, ":");
        snprintf(path, sizeof path, "%.*s/%s", length, folder, file);
        if (!access(path, X_OK)) return 1;
        folder += length + (folder[length] == ':');
    }
    return 0;
}

int posix_spawnp(pid_t* pid, const char* file, const posix_spawn_file_actions_t* actions, const posix_spawnattr_t* attributes,
                 char* const argv[], char* const envp[]) {
    if (!can_run(file)) return errno;
    struct Spawn what = {pid, actions, attributes};
    return start(spawn, &what, file, argv, envp);
}

int execvp(const char* file, char* const argv[]) { return start(execute, NULL, file, argv, environ); }

int ioctl(int file, unsigned long request, ...) {
    typedef int Ioctl(int, unsigned long, ...);
    va_list list;
    va_start(list, request);
    void* argument = va_arg(list, void*);
    va_end(list);
    const int said = ((Ioctl*)dlsym(RTLD_NEXT, "ioctl"))(file, request, argument);
    if (said < 0 && errno == ENOSYS) errno = ENOTTY;
    return said;
}
