/* Layers of spiking networks in C99: additions of bits, no allocation, no mutable data at file scope.

   A map of spikes is [pixel][plane][word]: bit c % 64 of word c / 64 belongs to channel c. Spikes have one plane; small
   whole numbers, such as pooled spikes, have one for each binary digit, the lowest first. A map of currents, which
   residual blocks hand on that add them, is [pixel][channel] in float32.

   A convolution of spikes adds, for every input channel that spikes, a row of its table: one bit for every output
   channel and digit of the weights. The bits are added as they lie, 64 a word, by carry-save adders: no multiplication
   and no popcount. What does not spike costs nothing. */

#ifndef TNA_KERNELS_H
#define TNA_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum tna_reset { TNA_RESET_ZERO, TNA_RESET_SUBTRACT, TNA_RESET_NONE };

/* What becomes of uint8 pixels [C, H, W]: (pixel - mean[c]) * scale[c], then * gain[h, w] where there is one. */
struct tna_input {
    uint32_t channels, height, width;
    const float *mean, *scale, *gain;
};

/* A convolution, or a linear layer as one without padding, with one scale and one bias for each output channel.

   The weight of a row (kernel row, kernel column, input channel; then a row of zeros) is in `bits` or in `weights`.
   With bits, a weight is `per_row` and, for each of its `digits` bits that is set, digit_values[]. Bits of a row are
   [digit][output channel], in the order of tna_lightning.export.c.tables. */
struct tna_convolution {
    uint32_t in_channels, in_planes, in_height, in_width;
    uint32_t out_channels, out_height, out_width;
    uint32_t kernel_height, kernel_width, stride_height, stride_width;
    uint32_t padding_height, padding_width, dilation_height, dilation_width;
    const uint64_t *bits;
    uint32_t row_words, digits;
    const int32_t *digit_values;
    int32_t per_row;
    const float *weights;        /* [row][output channel], where the weights are no bits */
    const float *scale, *bias;   /* [output channel] */
    const float *negative_scale; /* of the second digit, where it has its own; else NULL */
};

/* Leaky integrate-and-fire neurons: decay and threshold of each channel. */
struct tna_neurons {
    uint32_t channels;
    enum tna_reset reset;
    const float *beta, *threshold;
};

/* Pooling over windows of pixels, those of row y from row_begin[y] up to, not including, row_end[y].

   An average is kept as a whole number: the sum over n pixels times multiple / n. */
struct tna_pool {
    uint32_t words, in_width, in_planes, out_planes, out_height, out_width, multiple;
    const uint16_t *row_begin, *row_end, *column_begin, *column_end;
};

enum tna_join_kind { TNA_ADD, TNA_AND, TNA_IAND };

/* Spikes joined with another map, spikes or whole numbers: their sum, or that map where they are, or are not. */
struct tna_join {
    enum tna_join_kind kind;
    uint32_t pixels, words, in_planes, out_planes;
};

/* What a layer works with: the steps that it runs at once, and memory, whose sizes are computed at export.

   The spikes of step t lie t * step_words behind those of the first one, currents t * step_currents. */
struct tna_scratch {
    uint32_t steps;
    size_t step_words, step_currents;
    uint16_t *lists, *counts; /* channels that spike, of the input rows in reach */
    uint32_t *rows;
    float *values, *currents, *more_currents, *membrane;
    int32_t *sums;
    uint8_t *lanes, *fired;
};

struct tna_source {
    const struct tna_convolution *convolution;
    const uint64_t *map;
};

/* A layer of neurons, driven by the currents of one or two convolutions, and with `identity` by those of the spikes of
   that map. Their spikes are written to `out`. `membranes` are kept from call to call; where it is NULL, the neurons
   start from rest. */
void tna_spiking_layer(const struct tna_source *sources, size_t num_sources, const uint64_t *identity,
                       const struct tna_neurons *neurons, float *membranes, uint64_t *out,
                       const struct tna_scratch *scratch);

/* The first layer: neurons that are driven by pixels, the same at every step. */
void tna_pixel_layer(const struct tna_convolution *convolution, const struct tna_input *input, const uint8_t *pixels,
                     const struct tna_neurons *neurons, float *membranes, uint64_t *out,
                     const struct tna_scratch *scratch);

/* Neurons that are driven by a map of currents. */
void tna_current_layer(const float *currents, size_t pixels, const struct tna_neurons *neurons, float *membranes,
                       uint64_t *out, const struct tna_scratch *scratch);

/* The currents of a convolution of pixels, the same at every step. */
void tna_pixel_currents(const struct tna_convolution *convolution, const struct tna_input *input,
                        const uint8_t *pixels, float *out, const struct tna_scratch *scratch);

/* The currents of a convolution of spikes; plus those of `shortcut`, a convolution that sees the currents `seen`; or
   plus `seen` itself, which may be `out`; or alone, where both are NULL. */
void tna_spiking_currents(const struct tna_source *source, const struct tna_convolution *shortcut, const float *seen,
                          float *out, const struct tna_scratch *scratch);

/* Add the currents of a layer with one output pixel to `logits`. */
void tna_readout(const struct tna_source *source, float *logits, const struct tna_scratch *scratch);

void tna_average_pool(const struct tna_pool *pool, const uint64_t *in, uint64_t *out,
                      const struct tna_scratch *scratch);
void tna_max_pool(const struct tna_pool *pool, const uint64_t *in, uint64_t *out, const struct tna_scratch *scratch);
void tna_max_pool_currents(const struct tna_pool *pool, size_t channels, const float *in, float *out,
                           const struct tna_scratch *scratch);
void tna_join(const struct tna_join *join, const uint64_t *spikes, const uint64_t *other, uint64_t *out,
              const struct tna_scratch *scratch);

#endif
