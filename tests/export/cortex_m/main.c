/* Runs a network on the images of images.h on a Cortex-M without an operating system, and prints the bits of its logits,
   an image a line, then the bytes of its state and of the stack that it needed. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "network.h"

#include "images.h"

extern uint32_t stack_end[], stack_begin[];
static struct network network; /* what it held before does not matter */

/* A request to the debugger, which the emulator answers. */
static void semihost(uintptr_t operation, uintptr_t argument)
{
    register uintptr_t r0 __asm__("r0") = operation, r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

enum { WRITE_TEXT = 0x04, LEAVE = 0x18, LEFT_AS_MEANT = 0x20026, FAULT = 0x20023 };

static void print(uint32_t value, const char *after)
{
    char text[9] = "";
    for (unsigned digit = 0; digit < 8; digit++)
        text[digit] = "0123456789abcdef"[(value >> (28 - 4 * digit)) & 15];
    semihost(WRITE_TEXT, (uintptr_t)text);
    semihost(WRITE_TEXT, (uintptr_t)after);
}

void start(void);

static void fail(void)
{
    semihost(LEAVE, FAULT);
    for (;;)
        ;
}

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {
    stack_begin, (void *)start, (void *)fail, (void *)fail, (void *)fail, (void *)fail, (void *)fail,
};

static void run(void)
{
    float logits[NETWORK_CLASSES];
    for (size_t i = 0; i < sizeof images / sizeof *images; i++) {
        network_run(&network, images[i], logits);
        for (unsigned k = 0; k < NETWORK_CLASSES; k++) {
            uint32_t bits;
            memcpy(&bits, &logits[k], sizeof bits);
            print(bits, k + 1 < NETWORK_CLASSES ? " " : "\n");
        }
    }
}

void start(void)
{
#ifdef __ARM_FP
    *(volatile uint32_t *)0xe000ed88 |= 0xfu << 20; /* floating-point unit on */
    __asm__ volatile("dsb\n isb");
#endif
    uint32_t *here = __builtin_frame_address(0);
    for (volatile uint32_t *word = stack_end; word < here - 16; word++)
        *word = 0xdeadbeef;
    run();
    const uint32_t *lowest = stack_end;
    while (*lowest == 0xdeadbeef)
        lowest++;
    print(sizeof network, " ");
    print((uint32_t)(4 * (stack_begin - lowest)), "\n");
    semihost(LEAVE, LEFT_AS_MEANT);
    for (;;)
        ;
}
