/* A network behind calls with plain arguments, for other languages. Compiled with -DTNA_TRACE, -DHEADER='"network.h"',
   -DNAME=network and -DUPPER=NETWORK. */

#include HEADER

#include <stdlib.h>

#define JOIN_(name, suffix) name##suffix
#define JOIN(name, suffix) JOIN_(name, suffix)
#define CALL(suffix) JOIN(NAME, suffix)
#define CONSTANT(suffix) JOIN(UPPER, suffix)

size_t CALL(_bind_bytes)(void)
{
    return sizeof(struct NAME);
}

/* C, H, W, K, and T of an image or 0 for event frames */
void CALL(_bind_sizes)(uint32_t *sizes)
{
    const struct tna_input *input = &CALL(_input);
    sizes[0] = input->channels;
    sizes[1] = input->height;
    sizes[2] = input->width;
    sizes[3] = CONSTANT(_CLASSES);
#if CONSTANT(_EVENTS)
    sizes[4] = 0;
#else
    sizes[4] = CONSTANT(_STEPS);
#endif
}

const char *CALL(_bind_class_name)(size_t index)
{
    return CALL(_class_names)[index];
}

/* Logits [count][K] of images [count][C][H][W], or of event frames [count][steps][C][H][W]. Spikes go to `trace`, where
   that is not NULL. Gives 0 if there is no memory. */
int CALL(_bind_run)(const uint8_t *inputs, size_t count, size_t steps, float *logits, uint64_t *trace)
{
    const struct tna_input *input = &CALL(_input);
    const size_t size = (size_t)input->channels * input->height * input->width;
    struct NAME *network = malloc(sizeof *network);
    if (!network)
        return 0;
    network->trace = trace;
    for (size_t i = 0; i < count; i++, logits += CONSTANT(_CLASSES)) {
#if CONSTANT(_EVENTS)
        CALL(_reset)(network);
        for (size_t step = 0; step < steps; step++)
            CALL(_step)(network, inputs + (i * steps + step) * size);
        CALL(_read)(network, logits);
#else
        (void)steps;
        CALL(_run)(network, inputs + i * size, logits);
#endif
    }
    free(network);
    return 1;
}
