/* Init of the initramfs: loads the modules listed in /modules, mounts the root disk, writes the
 * machine id (both machines boot from one root image) and executes systemd. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void fail(const char *what)
{
    dprintf(2, "init: %s: %s\n", what, strerror(errno));
    for (;;)
        pause();
}

static void read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY);
    ssize_t length = fd < 0 ? 0 : read(fd, text, size - 1);

    text[length > 0 ? length : 0] = 0;
    if (fd >= 0)
        close(fd);
}

static void load_modules(void)
{
    char list[4096];

    read_text("/modules", list, sizeof list);
    for (char *path = strtok(list, "\n"); path; path = strtok(NULL, "\n")) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);

        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
            dprintf(2, "init: %s: %s\n", path, strerror(errno));
        if (fd >= 0)
            close(fd);
    }
}

/* The machine id comes from the kernel command line. */
static void write_machine_id(const char *cmdline)
{
    const char *argument = strstr(cmdline, "lab.machine_id=");
    char id[33];

    if (!argument || sscanf(argument, "lab.machine_id=%32[0-9a-f]", id) != 1)
        return;
    int fd = open("etc/machine-id", O_WRONLY | O_CREAT | O_TRUNC, 0444);
    if (fd < 0)
        return;
    dprintf(fd, "%s\n", id);
    close(fd);
}

int main(void)
{
    char cmdline[4096];
    int console;

    mkdir("/proc", 0755);
    mkdir("/dev", 0755);
    mkdir("/root", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    console = open("/dev/console", O_RDWR);
    for (int fd = 0; console >= 0 && fd < 3; fd++)
        dup2(console, fd);
    read_text("/proc/cmdline", cmdline, sizeof cmdline);
    load_modules();
    for (int tries = 0; tries < 1000 && access("/dev/vda", F_OK); tries++)
        usleep(10000);
    if (mount("/dev/vda", "/root", "ext4", MS_NOATIME, NULL))
        fail("mount /dev/vda");
    umount("/proc");
    if (mount("/dev", "/root/dev", NULL, MS_MOVE, NULL) || chdir("/root"))
        fail("enter the root");
    write_machine_id(cmdline);
    if (mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
        fail("switch to the root");
    execl("/sbin/init", "/sbin/init", (char *)NULL);
    fail("start /sbin/init");
    return 1;
}
