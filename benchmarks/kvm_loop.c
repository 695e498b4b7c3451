/* The run loop of a VMM in plain C: what the exits of KVM cost without Python.
 *
 *     kvm_loop port_out|port_in|mmio_write|mmio_read n
 *
 * A real-mode guest at 0x8000 writes AL n times to port 0x10, or to guest-physical 0x1000,
 * which is a hole (the talk's device page in vmmsim's machine), or reads it there, and halts. Prints exits per
 * second. bench_kvm.py compiles it with `gcc -O2` and runs the same guest bytes under vmmsim
 * beside it.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* mov al, 0x55; mov ecx, n; again: out 0x10, al (mov [0x1000], al); dec ecx; jnz again; hlt.
 * n is patched in at CODE + 4, for reads the opcode at CODE + 8: in al, 0x10; mov al, [0x1000]. */
static const uint8_t PORT[] = {0xb0, 0x55, 0x66, 0xb9, 0, 0, 0, 0, 0xe6, 0x10, 0x66, 0x49, 0x75, 0xfa, 0xf4};
static const uint8_t MMIO[] = {0xb0, 0x55, 0x66, 0xb9, 0, 0, 0, 0, 0xa2, 0x00, 0x10, 0x66, 0x49, 0x75, 0xf9, 0xf4};
enum { RAM = 0x2000, SIZE = 0xe000, CODE = 0x8000 };

static void check(int ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: kvm_loop port_out|port_in|mmio_write|mmio_read n\n");
        return 2;
    }
    int port = strncmp(argv[1], "port", 4) == 0;
    int in = strcmp(argv[1], "port_in") == 0, load = strcmp(argv[1], "mmio_read") == 0;
    uint32_t n = strtoul(argv[2], NULL, 0);
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    check(kvm >= 0, "/dev/kvm");
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    check(vm >= 0, "KVM_CREATE_VM");
    uint8_t *ram = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(ram != MAP_FAILED, "mmap");
    memcpy(ram + CODE - RAM, port ? PORT : MMIO, port ? sizeof PORT : sizeof MMIO);
    memcpy(ram + CODE - RAM + 4, &n, 4);
    if (in || load)
        ram[CODE - RAM + 8] = in ? 0xe4 : 0xa0;
    struct kvm_userspace_memory_region slot = {
        .guest_phys_addr = RAM, .memory_size = SIZE, .userspace_addr = (uintptr_t)ram};
    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0, "KVM_SET_USER_MEMORY_REGION");
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    check(vcpu >= 0, "KVM_CREATE_VCPU");
    int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    check(run != MAP_FAILED, "mmap of the vCPU");
    struct kvm_sregs sregs;
    check(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    check(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
    struct kvm_regs regs = {.rip = CODE, .rflags = 2};
    check(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");

    struct timespec t0, t1;
    volatile uint64_t sink = 0; /* the device: takes each byte, and answers one */
    uint64_t exits = 0;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    for (;;) {
        check(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
        if (run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_OUT)
            sink += *((uint8_t *)run + run->io.data_offset);
        else if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write)
            sink += run->mmio.data[0];
        else if (run->exit_reason == KVM_EXIT_IO)
            *((uint8_t *)run + run->io.data_offset) = 0x41;
        else if (run->exit_reason == KVM_EXIT_MMIO)
            run->mmio.data[0] = 0x41;
        else
            break;
        exits++;
    }
    clock_gettime(CLOCK_MONOTONIC, &t1);
    if (run->exit_reason != KVM_EXIT_HLT || exits != n) {
        fprintf(stderr, "exit reason %u after %llu exits\n", run->exit_reason, (unsigned long long)exits);
        return 1;
    }
    double seconds = (t1.tv_sec - t0.tv_sec) + (t1.tv_nsec - t0.tv_nsec) / 1e9;
    printf("%.0f\n", exits / seconds);
    return 0;
}
