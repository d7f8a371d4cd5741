/* Classes and logits of inputs in a file of numpy's (numpy.save): uint8, images [N, C, H, W] or event frames
   [N, T, C, H, W], whichever the network was made for.

       ./example inputs.npy */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "network.h"

enum { FRAME = NETWORK_CHANNELS * NETWORK_HEIGHT * NETWORK_WIDTH, LONGEST_HEADER = 4096, DIMENSIONS = 5 };

struct array {
    unsigned long shape[DIMENSIONS];
    int dimensions;
};

/* The text behind 'key': in a header, or NULL. */
static const char *entry(const char *header, const char *key)
{
    const char *found = strstr(header, key);
    return found ? found + strlen(key) : NULL;
}

/* Read the header of an .npy file, version 1 to 3; gives NULL, or what is wrong. */
static const char *read_header(FILE *file, struct array *array)
{
    unsigned char start[12];
    char header[LONGEST_HEADER + 1];
    if (fread(start, 1, 10, file) != 10 || memcmp(start, "\x93NUMPY", 6) != 0)
        return "is no .npy file";
    unsigned long length = start[8] + 256ul * start[9];
    if (start[6] < 1 || start[6] > 3)
        return "has a version of .npy that this program does not know";
    if (start[6] > 1) {
        if (fread(start + 10, 1, 2, file) != 2)
            return "is cut short";
        length += 65536ul * (start[10] + 256ul * start[11]);
    }
    if (length > LONGEST_HEADER)
        return "has too long a header";
    if (fread(header, 1, length, file) != length)
        return "is cut short";
    header[length] = '\0';
    const char *type = entry(header, "'descr': "), *order = entry(header, "'fortran_order': ");
    const char *shape = entry(header, "'shape': (");
    if (!type || strncmp(type, "'|u1'", 5) != 0)
        return "does not hold uint8";
    if (!order || strncmp(order, "False", 5) != 0)
        return "is not in C order";
    if (!shape)
        return "has no shape";
    array->dimensions = 0;
    while (*shape >= '0' && *shape <= '9') {
        unsigned long size = 0;
        for (; *shape >= '0' && *shape <= '9'; shape++) {
            if (size > 100000000ul)
                return "has too large a shape";
            size = 10 * size + (unsigned long)(*shape - '0');
        }
        if (array->dimensions == DIMENSIONS)
            return "has too many dimensions";
        array->shape[array->dimensions++] = size;
        while (*shape == ',' || *shape == ' ')
            shape++;
    }
    return *shape == ')' ? NULL : "has no shape";
}

static const char *check_shape(const struct array *array)
{
    const int last = array->dimensions - 1;
    if (array->dimensions != 4 + NETWORK_EVENTS)
        return NETWORK_EVENTS ? "must be [N, T, C, H, W]" : "must be [N, C, H, W]";
    if (array->shape[last - 2] != NETWORK_CHANNELS || array->shape[last - 1] != NETWORK_HEIGHT ||
        array->shape[last] != NETWORK_WIDTH)
        return "has another C, H or W than the network";
    return array->shape[last - 3] > 0 || !NETWORK_EVENTS ? NULL : "has no time steps";
}

static const char *run(FILE *file, const struct array *array)
{
    static struct network network; /* may be too large for a stack */
    static unsigned char frame[FRAME];
    float logits[NETWORK_CLASSES];
    for (unsigned long i = 0; i < array->shape[0]; i++) {
#if NETWORK_EVENTS
        network_reset(&network);
        for (unsigned long step = 0; step < array->shape[1]; step++) {
            if (fread(frame, 1, FRAME, file) != FRAME)
                return "is cut short";
            network_step(&network, frame);
        }
        const unsigned best = network_read(&network, logits);
#else
        if (fread(frame, 1, FRAME, file) != FRAME)
            return "is cut short";
        const unsigned best = network_run(&network, frame, logits);
#endif
        printf("%lu: class %u (%s), logits", i, best, network_class_names[best]);
        for (unsigned k = 0; k < NETWORK_CLASSES; k++)
            printf(" %.6g", (double)logits[k]);
        printf("\n");
    }
    return fgetc(file) == EOF ? NULL : "has more bytes than its shape says";
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s inputs.npy\n", argv[0]);
        return 2;
    }
    FILE *file = fopen(argv[1], "rb");
    struct array array;
    const char *wrong = file ? read_header(file, &array) : "cannot be opened";
    if (!wrong)
        wrong = check_shape(&array);
    if (!wrong)
        wrong = run(file, &array);
    if (file)
        fclose(file);
    if (wrong)
        fprintf(stderr, "error: %s %s\n", argv[1], wrong);
    return wrong ? EXIT_FAILURE : EXIT_SUCCESS;
}
