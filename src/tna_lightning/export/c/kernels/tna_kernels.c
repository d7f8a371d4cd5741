/* See tna_kernels.h.

   C99 lets a processor compute float expressions in a wider type (FLT_EVAL_METHOD: s390x, x87). The casts to float after
   each operation round as other processors do, so that logits are the same everywhere. */

#include "tna_kernels.h"

#include <string.h>

/* Words that are added at once. A compiler that knows vectors keeps several in a register; the sums are the same. */
#if defined(TNA_WIDEST) /* given, 1, 2, 4 or 8: for tests */
#elif !defined(__GNUC__) || defined(TNA_PLAIN)
#define TNA_WIDEST 1
#elif defined(__AVX512F__)
#define TNA_WIDEST 8
#elif defined(__AVX2__)
#define TNA_WIDEST 4
#elif UINTPTR_MAX > 0xffffffffu
#define TNA_WIDEST 2
#else
#define TNA_WIDEST 1
#endif

#if defined(__BYTE_ORDER__) && defined(__ORDER_LITTLE_ENDIAN__)
#define TNA_LITTLE_ENDIAN (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)
#else
#define TNA_LITTLE_ENDIAN 0
#endif

#define TNA_DEPTH 32 /* binary digits of a count, at most */

/* ---- bits ------------------------------------------------------------------------------------------------------- */

static unsigned first_bit(uint64_t word)
{
#if defined(__GNUC__) && !defined(TNA_PLAIN)
    return (unsigned)__builtin_ctzll(word);
#else
    unsigned bit = 0;
    while (!(word & 0xff)) {
        word >>= 8;
        bit += 8;
    }
    while (!(word & 1)) {
        word >>= 1;
        bit++;
    }
    return bit;
#endif
}

static size_t words_of(uint32_t channels)
{
    return (channels + 63) / 64;
}

/* The eight bytes at `bytes`, the first one lowest. */
static uint64_t load_bytes(const uint8_t *bytes)
{
    uint64_t word = 0;
#if TNA_LITTLE_ENDIAN
    memcpy(&word, bytes, sizeof word);
#else
    for (unsigned i = 0; i < 8; i++)
        word |= (uint64_t)bytes[i] << (8 * i);
#endif
    return word;
}

static void store_bytes(uint8_t *bytes, const uint64_t *words, size_t count)
{
#if TNA_LITTLE_ENDIAN
    memcpy(bytes, words, count * sizeof *words);
#else
    for (size_t i = 0; i < 8 * count; i++)
        bytes[i] = (uint8_t)(words[i / 8] >> (8 * (i % 8)));
#endif
}

/* ---- counting: rows of bits to planes of digits to bytes -------------------------------------------------------- */

/* high, low = a + b + c, bit by bit; low may be one of them */
#define TNA_SUM(vector, high, low, a, b, c)                                                                            \
    do {                                                                                                               \
        const vector differ_ = (a) ^ (b), carry_ = ((a) & (b)) | (differ_ & (c));                                      \
        low = differ_ ^ (c);                                                                                           \
        high = carry_;                                                                                                 \
    } while (0)

/* swap the bits of y at `mask` with those of x at mask << shift */
#define TNA_SWAP(vector, x, y, shift, mask)                                                                            \
    do {                                                                                                               \
        const vector differ_ = ((x >> (shift)) ^ y) & (mask);                                                          \
        y ^= differ_;                                                                                                  \
        x ^= differ_ << (shift);                                                                                       \
    } while (0)

/* count_W adds the W words at the front of each row to planes [depth][W]; the number of rows is a multiple of eight.
   Eight rows become one carry of weight eight, which waits for a second one of its weight, and so on. */
#define TNA_DEFINE_COUNT(W, vector)                                                                                    \
    static vector load_##W(const uint64_t *words)                                                                      \
    {                                                                                                                  \
        vector loaded;                                                                                                 \
        memcpy(&loaded, words, sizeof loaded);                                                                         \
        return loaded;                                                                                                 \
    }                                                                                                                  \
                                                                                                                       \
    static void count_##W(const uint64_t *table, size_t stride, const uint32_t *rows, size_t num_rows,                 \
                          uint64_t *planes, unsigned depth)                                                            \
    {                                                                                                                  \
        vector ones = load_##W(planes), twos = load_##W(planes + W), fours = load_##W(planes + 2 * W);                 \
        vector waiting[TNA_DEPTH + 1], carry = {0}, a, b, c, d;                                                        \
        size_t block = 0;                                                                                              \
        for (size_t i = 0; i < num_rows; i += 8) {                                                                     \
            TNA_SUM(vector, a, ones, ones, load_##W(table + rows[i] * stride),                                         \
                    load_##W(table + rows[i + 1] * stride));                                                           \
            TNA_SUM(vector, b, ones, ones, load_##W(table + rows[i + 2] * stride),                                     \
                    load_##W(table + rows[i + 3] * stride));                                                           \
            TNA_SUM(vector, c, twos, twos, a, b);                                                                      \
            TNA_SUM(vector, a, ones, ones, load_##W(table + rows[i + 4] * stride),                                     \
                    load_##W(table + rows[i + 5] * stride));                                                           \
            TNA_SUM(vector, b, ones, ones, load_##W(table + rows[i + 6] * stride),                                     \
                    load_##W(table + rows[i + 7] * stride));                                                           \
            TNA_SUM(vector, d, twos, twos, a, b);                                                                      \
            TNA_SUM(vector, a, fours, fours, c, d);                                                                    \
            size_t level = 3;                                                                                          \
            block++;                                                                                                   \
            for (size_t rest = block; !(rest & 1); rest >>= 1) {                                                       \
                vector plane = load_##W(planes + level * W);                                                           \
                TNA_SUM(vector, a, plane, plane, waiting[level], a);                                                   \
                memcpy(planes + level * W, &plane, sizeof plane);                                                      \
                level++;                                                                                               \
            }                                                                                                          \
            waiting[level] = a;                                                                                        \
        }                                                                                                              \
        memcpy(planes, &ones, sizeof ones);                                                                            \
        memcpy(planes + W, &twos, sizeof twos);                                                                        \
        memcpy(planes + 2 * W, &fours, sizeof fours);                                                                  \
        for (unsigned level = 3; level < depth; level++) {                                                             \
            vector plane = load_##W(planes + level * W), other = {0};                                                  \
            if ((block >> (level - 3)) & 1)                                                                            \
                other = waiting[level];                                                                                \
            TNA_SUM(vector, carry, plane, plane, other, carry);                                                        \
            memcpy(planes + level * W, &plane, sizeof plane);                                                          \
        }                                                                                                              \
    }

/* spread_W turns planes [depth][pitch] into numbers, byte by byte, [byte][lane]: eight planes of a word are eight bytes
   of eight lanes, transposed. In a group of `group` words, bit 8 i + j of word w becomes lane 8 (j group + w) + i. */
#define TNA_DEFINE_SPREAD(W, vector)                                                                                   \
    static void spread_##W(const uint64_t *planes, size_t pitch, unsigned depth, uint8_t *lanes, size_t num_lanes,     \
                           size_t group)                                                                               \
    {                                                                                                                  \
        const vector zero = {0}, mask_1 = zero + UINT64_C(0x5555555555555555),                                         \
                     mask_2 = zero + UINT64_C(0x3333333333333333), mask_4 = zero + UINT64_C(0x0f0f0f0f0f0f0f0f);       \
        for (unsigned first = 0; first < depth; first += 8, lanes += num_lanes) {                                      \
            vector x[8];                                                                                               \
            for (unsigned k = 0; k < 8; k++)                                                                           \
                x[k] = first + k < depth ? load_##W(planes + (first + k) * pitch) : zero;                              \
            for (unsigned k = 0; k < 8; k += 2)                                                                        \
                TNA_SWAP(vector, x[k], x[k + 1], 1, mask_1);                                                           \
            for (unsigned k = 0; k < 8; k += 4) {                                                                      \
                TNA_SWAP(vector, x[k], x[k + 2], 2, mask_2);                                                           \
                TNA_SWAP(vector, x[k + 1], x[k + 3], 2, mask_2);                                                       \
            }                                                                                                          \
            for (unsigned k = 0; k < 4; k++)                                                                           \
                TNA_SWAP(vector, x[k], x[k + 4], 4, mask_4);                                                           \
            for (unsigned k = 0; k < 8; k++) {                                                                         \
                uint64_t words[W];                                                                                     \
                memcpy(words, &x[k], sizeof words);                                                                    \
                store_bytes(lanes + 8 * group * k, words, W);                                                          \
            }                                                                                                          \
        }                                                                                                              \
    }

typedef uint64_t vector_1;
TNA_DEFINE_COUNT(1, vector_1)
TNA_DEFINE_SPREAD(1, vector_1)
#if TNA_WIDEST > 1
typedef uint64_t vector_2 __attribute__((vector_size(16)));
TNA_DEFINE_COUNT(2, vector_2)
TNA_DEFINE_SPREAD(2, vector_2)
#endif
#if TNA_WIDEST > 2
typedef uint64_t vector_4 __attribute__((vector_size(32)));
TNA_DEFINE_COUNT(4, vector_4)
TNA_DEFINE_SPREAD(4, vector_4)
#endif
#if TNA_WIDEST > 4
typedef uint64_t vector_8 __attribute__((vector_size(64)));
TNA_DEFINE_COUNT(8, vector_8)
#endif

/* ---- which rows to add ------------------------------------------------------------------------------------------ */

/* The channels that spike in the rows of the input that a row of outputs can see, as lists, made once for all of them,
   [step][y % span][x][plane]. */
struct reach {
    const struct tna_source *source;
    uint16_t *lists, *counts;
    uint32_t span, listed;
};

static struct reach reach_of(const struct tna_source *source, const struct reach *before,
                             const struct tna_scratch *scratch)
{
    const struct tna_convolution *c = source->convolution;
    struct reach reach = {source, scratch->lists, scratch->counts, 0, 0};
    if (before) {
        const struct tna_convolution *b = before->source->convolution;
        const size_t num_lists = (size_t)scratch->steps * before->span * b->in_width * b->in_planes;
        reach.lists = before->lists + num_lists * b->in_channels;
        reach.counts = before->counts + num_lists;
    }
    reach.span = (c->kernel_height - 1) * c->dilation_height + 1;
    return reach;
}

/* How many lists there are before those of a row of the input. */
static size_t first_list(const struct reach *reach, uint32_t step, uint32_t y)
{
    const struct tna_convolution *c = reach->source->convolution;
    return ((size_t)step * reach->span + y % reach->span) * c->in_width * c->in_planes;
}

static void list_rows(struct reach *reach, uint32_t out_y, const struct tna_scratch *scratch)
{
    const struct tna_convolution *c = reach->source->convolution;
    const size_t words = words_of(c->in_channels), lists_per_row = (size_t)c->in_width * c->in_planes;
    const uint32_t begin = out_y * c->stride_height, end = begin + reach->span, padding = c->padding_height;
    if (begin > padding && reach->listed < begin - padding)
        reach->listed = begin - padding;
    for (; reach->listed < c->in_height && reach->listed + padding < end; reach->listed++)
        for (uint32_t step = 0; step < scratch->steps; step++) {
            const size_t first = first_list(reach, step, reach->listed);
            const uint64_t *bits =
                reach->source->map + step * scratch->step_words + reach->listed * lists_per_row * words;
            for (size_t i = first; i < first + lists_per_row; i++) {
                uint16_t *list = reach->lists + i * c->in_channels;
                uint16_t count = 0;
                for (size_t word = 0; word < words; word++)
                    for (uint64_t rest = *bits++; rest; rest &= rest - 1)
                        list[count++] = (uint16_t)(64 * word + first_bit(rest));
                reach->counts[i] = count;
            }
        }
}

/* The rows of the table that one plane of the input adds to one output pixel. */
static size_t gather_rows(const struct reach *reach, uint32_t step, uint32_t out_y, uint32_t out_x, uint32_t plane,
                          uint32_t *rows)
{
    const struct tna_convolution *c = reach->source->convolution;
    size_t num_rows = 0;
    for (uint32_t ky = 0; ky < c->kernel_height; ky++) {
        const uint32_t y = out_y * c->stride_height + ky * c->dilation_height - c->padding_height;
        if (y >= c->in_height) /* above the first row, too: unsigned */
            continue;
        const size_t row_lists = first_list(reach, step, y);
        for (uint32_t kx = 0; kx < c->kernel_width; kx++) {
            const uint32_t x = out_x * c->stride_width + kx * c->dilation_width - c->padding_width;
            if (x >= c->in_width)
                continue;
            const size_t i = row_lists + x * c->in_planes + plane;
            const uint16_t *list = reach->lists + i * c->in_channels;
            const uint32_t first = (ky * c->kernel_width + kx) * c->in_channels, count = reach->counts[i];
            for (uint32_t k = 0; k < count; k++)
                rows[num_rows + k] = first + list[k];
            num_rows += count;
        }
    }
    return num_rows;
}

/* ---- currents of one output pixel ------------------------------------------------------------------------------- */

/* sums[o] += the weights of these rows, times a value each where there are values */
static void add_weights(const struct tna_convolution *c, const uint32_t *rows, const float *values, size_t num_rows,
                        float *restrict sums)
{
    const size_t channels = c->out_channels;
    for (size_t i = 0; i < num_rows; i++) {
        const float *restrict weights = c->weights + rows[i] * channels;
        if (values) {
            const float value = values[i];
            for (size_t k = 0; k < channels; k++)
                sums[k] += (float)(value * weights[k]);
        } else {
            for (size_t k = 0; k < channels; k++)
                sums[k] += weights[k];
        }
    }
}

static void count(size_t width, const uint64_t *table, size_t stride, const uint32_t *rows, size_t num_rows,
                  uint64_t *planes, unsigned depth)
{
    switch (width) {
#if TNA_WIDEST > 4
    case 8:
        count_8(table, stride, rows, num_rows, planes, depth);
        break;
#endif
#if TNA_WIDEST > 2
    case 4:
        count_4(table, stride, rows, num_rows, planes, depth);
        break;
#endif
#if TNA_WIDEST > 1
    case 2:
        count_2(table, stride, rows, num_rows, planes, depth);
        break;
#endif
    default:
        count_1(table, stride, rows, num_rows, planes, depth);
    }
}

static void spread(size_t width, const uint64_t *planes, unsigned depth, uint8_t *lanes, size_t num_lanes, size_t group)
{
    switch (width) {
#if TNA_WIDEST > 4
    case 8:
        spread_4(planes, 8, depth, lanes, num_lanes, 4);
        spread_4(planes + 4, 8, depth, lanes + 64 * 4, num_lanes, 4);
        break;
#endif
#if TNA_WIDEST > 2
    case 4:
        spread_4(planes, 4, depth, lanes, num_lanes, group);
        break;
#endif
#if TNA_WIDEST > 1
    case 2:
        spread_2(planes, 2, depth, lanes, num_lanes, group);
        break;
#endif
    default:
        spread_1(planes, 1, depth, lanes, num_lanes, group);
    }
}

/* Add up rows of the table, those of plane p 2^p times, into lanes [byte][digit][output channel]. The words of a row
   come in groups of four, then of two and one. */
static void count_lanes(const struct tna_convolution *c, const uint32_t *const *rows, const size_t *num_rows,
                        unsigned depth, uint8_t *lanes)
{
    uint64_t planes[TNA_DEPTH * TNA_WIDEST];
    const size_t num_lanes = (size_t)64 * c->row_words;
    for (size_t word = 0, group; word < c->row_words; word += group) {
        const size_t left = c->row_words - word;
        group = left >= 8 && TNA_WIDEST >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        const size_t width = group < TNA_WIDEST ? group : TNA_WIDEST;
        for (size_t part = 0; part < group; part += width) {
            memset(planes, 0, depth * width * sizeof *planes);
            for (uint32_t p = c->in_planes; p-- > 0;) {
                if (p + 1 < c->in_planes) {
                    memmove(planes + width, planes, (depth - 1) * width * sizeof *planes);
                    memset(planes, 0, width * sizeof *planes);
                }
                count(width, c->bits + word + part, c->row_words, rows[p], num_rows[p], planes, depth);
            }
            spread(width, planes, depth, lanes + 64 * word + 8 * part, num_lanes, group);
        }
    }
}

static int is_ternary(const struct tna_convolution *c)
{
    return c->digits == 2 && c->digit_values[0] == 1 && c->digit_values[1] == -1 && !c->negative_scale;
}

/* sums[o] += value * number in the lanes of one digit */
static void add_lanes(int32_t *restrict sums, const uint8_t *restrict lanes, size_t channels, int32_t value)
{
    for (size_t o = 0; o < channels; o++)
        sums[o] += value * (int32_t)lanes[o];
}

static void lanes_to_currents(const struct tna_convolution *c, const uint8_t *restrict lanes, unsigned bytes,
                              int32_t added, int32_t *restrict sums, float *restrict currents)
{
    const size_t channels = c->out_channels, num_lanes = (size_t)64 * c->row_words;
    const uint8_t *restrict minus = lanes + channels, *restrict high = lanes + num_lanes;
    const uint8_t *restrict high_minus = high + channels;
    const float *restrict scale = c->scale, *restrict bias = c->bias;
    if (is_ternary(c) && bytes == 1) {
        for (size_t o = 0; o < channels; o++)
            currents[o] = (float)((float)(lanes[o] - minus[o]) * scale[o]) + bias[o];
        return;
    }
    if (is_ternary(c) && bytes == 2) {
        for (size_t o = 0; o < channels; o++)
            currents[o] =
                (float)((float)(lanes[o] - minus[o] + 256 * (high[o] - high_minus[o])) * scale[o]) + bias[o];
        return;
    }
    for (uint32_t digit = 0; digit < c->digits; digit++) {
        if (digit == 0 || c->negative_scale)
            for (size_t o = 0; o < channels; o++)
                sums[o] = added;
        for (unsigned byte = 0; byte < bytes; byte++)
            add_lanes(sums, lanes + byte * num_lanes + digit * channels, channels,
                      c->digit_values[digit] * ((int32_t)1 << (8 * byte)));
        if (digit == 0 && c->negative_scale)
            for (size_t o = 0; o < channels; o++)
                currents[o] = (float)sums[o] * scale[o];
    }
    if (c->negative_scale)
        for (size_t o = 0; o < channels; o++)
            currents[o] = (float)(currents[o] + (float)((float)sums[o] * c->negative_scale[o])) + bias[o];
    else
        for (size_t o = 0; o < channels; o++)
            currents[o] = (float)((float)sums[o] * scale[o]) + bias[o];
}

static void find_currents(const struct reach *reach, uint32_t step, uint32_t out_y, uint32_t out_x,
                          float *restrict currents, const struct tna_scratch *scratch)
{
    const struct tna_convolution *c = reach->source->convolution;
    const uint32_t zeros = c->kernel_height * c->kernel_width * c->in_channels; /* the last row of the table */
    if (!c->bits) {
        memset(currents, 0, c->out_channels * sizeof *currents);
        for (uint32_t p = c->in_planes; p-- > 0;) {
            if (p + 1 < c->in_planes)
                for (size_t o = 0; o < c->out_channels; o++)
                    currents[o] += currents[o];
            add_weights(c, scratch->rows, NULL, gather_rows(reach, step, out_y, out_x, p, scratch->rows), currents);
        }
        for (size_t o = 0; o < c->out_channels; o++)
            currents[o] = (float)(currents[o] * c->scale[o]) + c->bias[o];
        return;
    }
    const uint32_t *rows[TNA_DEPTH];
    size_t num_rows[TNA_DEPTH];
    uint32_t *next = scratch->rows, most = 0, sum = 0;
    for (uint32_t p = 0; p < c->in_planes; p++) {
        size_t count = gather_rows(reach, step, out_y, out_x, p, next);
        sum += (uint32_t)count << p;
        for (; count % 8; count++)
            next[count] = zeros;
        most += (uint32_t)count << p;
        rows[p] = next;
        num_rows[p] = count;
        next += count;
    }
    unsigned depth = 3;
    while (most >> depth)
        depth++;
    count_lanes(c, rows, num_rows, depth, scratch->lanes);
    lanes_to_currents(c, scratch->lanes, (depth + 7) / 8, c->per_row * (int32_t)sum, scratch->sums, currents);
}

/* ---- neurons ---------------------------------------------------------------------------------------------------- */

/* One step of the neurons of one pixel; `membrane` is U before its reset, from which the spike before follows. */
static void fire(const struct tna_neurons *neurons, const float *restrict currents, float *restrict membrane,
                 uint64_t *out, uint8_t *restrict fired)
{
    const size_t channels = neurons->channels, words = words_of(neurons->channels);
    const float *restrict beta = neurons->beta, *restrict threshold = neurons->threshold;
    switch (neurons->reset) {
    case TNA_RESET_ZERO:
        for (size_t c = 0; c < channels; c++) {
            const float u = (float)(beta[c] * (membrane[c] > threshold[c] ? 0.0f : membrane[c])) + currents[c];
            membrane[c] = u;
            fired[c] = u > threshold[c];
        }
        break;
    case TNA_RESET_SUBTRACT:
        for (size_t c = 0; c < channels; c++) {
            const float taken = membrane[c] > threshold[c] ? threshold[c] : 0.0f;
            const float u = (float)((float)(beta[c] * membrane[c]) + currents[c]) - taken;
            membrane[c] = u;
            fired[c] = u > threshold[c];
        }
        break;
    default:
        for (size_t c = 0; c < channels; c++) {
            const float u = (float)(beta[c] * membrane[c]) + currents[c];
            membrane[c] = u;
            fired[c] = u > threshold[c];
        }
    }
    memset(fired + channels, 0, 64 * words - channels);
    for (size_t word = 0; word < words; word++) {
        uint64_t bits = 0;
        for (unsigned byte = 0; byte < 8; byte++) /* the product has the eight bytes' lowest bits in its highest byte */
            bits |= (load_bytes(fired + 64 * word + 8 * byte) * UINT64_C(0x0102040810204080) >> 56) << (8 * byte);
        out[word] = bits;
    }
}

/* The membranes of the neurons of a pixel: those that are kept, or others at rest. */
static float *start(const struct tna_neurons *neurons, float *membranes, size_t pixel,
                    const struct tna_scratch *scratch)
{
    if (membranes)
        return membranes + pixel * neurons->channels;
    memset(scratch->membrane, 0, neurons->channels * sizeof *scratch->membrane);
    return scratch->membrane;
}

/* ---- layers ----------------------------------------------------------------------------------------------------- */

void tna_spiking_layer(const struct tna_source *sources, size_t num_sources, const uint64_t *identity,
                       const struct tna_neurons *neurons, float *membranes, uint64_t *out,
                       const struct tna_scratch *scratch)
{
    const struct tna_convolution *c = sources[0].convolution;
    const size_t channels = c->out_channels, words = words_of(c->out_channels);
    struct reach first = reach_of(&sources[0], NULL, scratch);
    struct reach second = num_sources > 1 ? reach_of(&sources[1], &first, scratch) : first;
    size_t pixel = 0;
    for (uint32_t y = 0; y < c->out_height; y++) {
        list_rows(&first, y, scratch);
        if (num_sources > 1)
            list_rows(&second, y, scratch);
        for (uint32_t x = 0; x < c->out_width; x++, pixel++) {
            float *restrict currents = scratch->currents, *membrane = start(neurons, membranes, pixel, scratch);
            for (uint32_t step = 0; step < scratch->steps; step++) {
                const size_t place = step * scratch->step_words + pixel * words;
                find_currents(&first, step, y, x, currents, scratch);
                if (num_sources > 1) {
                    const float *restrict more = scratch->more_currents;
                    find_currents(&second, step, y, x, scratch->more_currents, scratch);
                    for (size_t k = 0; k < channels; k++)
                        currents[k] += more[k];
                }
                for (size_t word = 0; identity && word < words; word++)
                    for (uint64_t rest = identity[place + word]; rest; rest &= rest - 1)
                        currents[64 * word + first_bit(rest)] += 1.0f;
                fire(neurons, currents, membrane, out + place, scratch->fired);
            }
        }
    }
}

/* Currents of so many rows of the table and their values. */
static void weigh_values(const struct tna_convolution *c, size_t num_rows, float *restrict currents,
                         const struct tna_scratch *scratch)
{
    memset(currents, 0, c->out_channels * sizeof *currents);
    add_weights(c, scratch->rows, scratch->values, num_rows, currents);
    for (size_t o = 0; o < c->out_channels; o++)
        currents[o] = (float)(currents[o] * c->scale[o]) + c->bias[o];
}

static void find_pixel_currents(const struct tna_convolution *c, const struct tna_input *input, const uint8_t *pixels,
                                uint32_t out_y, uint32_t out_x, const struct tna_scratch *scratch)
{
    float *restrict currents = scratch->currents;
    size_t num_rows = 0;
    for (uint32_t ky = 0; ky < c->kernel_height; ky++) {
        const uint32_t y = out_y * c->stride_height + ky * c->dilation_height - c->padding_height;
        if (y >= c->in_height)
            continue;
        for (uint32_t kx = 0; kx < c->kernel_width; kx++) {
            const uint32_t x = out_x * c->stride_width + kx * c->dilation_width - c->padding_width;
            if (x >= c->in_width)
                continue;
            const size_t pixel = (size_t)y * c->in_width + x;
            for (uint32_t i = 0; i < c->in_channels; i++) {
                const uint8_t raw = pixels[(size_t)i * c->in_height * c->in_width + pixel];
                float value = (float)((float)raw - input->mean[i]) * input->scale[i];
                if (input->gain)
                    value *= input->gain[pixel];
                scratch->rows[num_rows] = (ky * c->kernel_width + kx) * c->in_channels + i;
                scratch->values[num_rows] = value;
                num_rows += value != 0.0f;
            }
        }
    }
    weigh_values(c, num_rows, currents, scratch);
}

void tna_pixel_layer(const struct tna_convolution *convolution, const struct tna_input *input, const uint8_t *pixels,
                     const struct tna_neurons *neurons, float *membranes, uint64_t *out,
                     const struct tna_scratch *scratch)
{
    const size_t words = words_of(neurons->channels);
    size_t pixel = 0;
    for (uint32_t y = 0; y < convolution->out_height; y++)
        for (uint32_t x = 0; x < convolution->out_width; x++, pixel++) {
            float *membrane = start(neurons, membranes, pixel, scratch);
            find_pixel_currents(convolution, input, pixels, y, x, scratch);
            for (uint32_t step = 0; step < scratch->steps; step++)
                fire(neurons, scratch->currents, membrane, out + step * scratch->step_words + pixel * words,
                     scratch->fired);
        }
}

/* ---- residual blocks that add currents -------------------------------------------------------------------------- */

void tna_current_layer(const float *currents, size_t pixels, const struct tna_neurons *neurons, float *membranes,
                       uint64_t *out, const struct tna_scratch *scratch)
{
    const size_t channels = neurons->channels, words = words_of(neurons->channels);
    for (size_t pixel = 0; pixel < pixels; pixel++) {
        float *membrane = start(neurons, membranes, pixel, scratch);
        for (uint32_t step = 0; step < scratch->steps; step++)
            fire(neurons, currents + step * scratch->step_currents + pixel * channels, membrane,
                 out + step * scratch->step_words + pixel * words, scratch->fired);
    }
}

void tna_pixel_currents(const struct tna_convolution *convolution, const struct tna_input *input,
                        const uint8_t *pixels, float *out, const struct tna_scratch *scratch)
{
    const size_t channels = convolution->out_channels;
    for (uint32_t y = 0; y < convolution->out_height; y++)
        for (uint32_t x = 0; x < convolution->out_width; x++, out += channels) {
            find_pixel_currents(convolution, input, pixels, y, x, scratch);
            for (uint32_t step = 0; step < scratch->steps; step++)
                memcpy(out + step * scratch->step_currents, scratch->currents, channels * sizeof *out);
        }
}

static void find_currents_of_currents(const struct tna_convolution *c, const float *seen, uint32_t out_y,
                                      uint32_t out_x, float *restrict currents, const struct tna_scratch *scratch)
{
    size_t num_rows = 0;
    for (uint32_t ky = 0; ky < c->kernel_height; ky++) {
        const uint32_t y = out_y * c->stride_height + ky * c->dilation_height - c->padding_height;
        if (y >= c->in_height)
            continue;
        for (uint32_t kx = 0; kx < c->kernel_width; kx++) {
            const uint32_t x = out_x * c->stride_width + kx * c->dilation_width - c->padding_width;
            if (x >= c->in_width)
                continue;
            const uint32_t first = (ky * c->kernel_width + kx) * c->in_channels;
            for (uint32_t i = 0; i < c->in_channels; i++)
                scratch->rows[num_rows + i] = first + i;
            memcpy(scratch->values + num_rows, seen + ((size_t)y * c->in_width + x) * c->in_channels,
                   c->in_channels * sizeof *seen);
            num_rows += c->in_channels;
        }
    }
    weigh_values(c, num_rows, currents, scratch);
}

void tna_spiking_currents(const struct tna_source *source, const struct tna_convolution *shortcut, const float *seen,
                          float *out, const struct tna_scratch *scratch)
{
    const struct tna_convolution *c = source->convolution;
    const size_t channels = c->out_channels;
    struct reach reach = reach_of(source, NULL, scratch);
    size_t pixel = 0;
    for (uint32_t y = 0; y < c->out_height; y++) {
        list_rows(&reach, y, scratch);
        for (uint32_t x = 0; x < c->out_width; x++, pixel++)
            for (uint32_t step = 0; step < scratch->steps; step++) {
                const size_t first = step * scratch->step_currents, place = first + pixel * channels;
                const float *more = NULL;
                find_currents(&reach, step, y, x, scratch->currents, scratch);
                if (shortcut) {
                    find_currents_of_currents(shortcut, seen + first, y, x, scratch->more_currents, scratch);
                    more = scratch->more_currents;
                } else if (seen) {
                    more = seen + place;
                }
                for (size_t k = 0; k < channels; k++)
                    out[place + k] = more ? scratch->currents[k] + more[k] : scratch->currents[k];
            }
    }
}

/* ---- classifier ------------------------------------------------------------------------------------------------- */

void tna_readout(const struct tna_source *source, float *logits, const struct tna_scratch *scratch)
{
    struct reach reach = reach_of(source, NULL, scratch);
    list_rows(&reach, 0, scratch);
    for (uint32_t step = 0; step < scratch->steps; step++) {
        find_currents(&reach, step, 0, 0, scratch->currents, scratch);
        for (size_t k = 0; k < source->convolution->out_channels; k++)
            logits[k] += scratch->currents[k];
    }
}

/* ---- pooling ---------------------------------------------------------------------------------------------------- */

static void average(const struct tna_pool *pool, const uint64_t *in, uint64_t *out)
{
    for (uint32_t y = 0; y < pool->out_height; y++)
        for (uint32_t x = 0; x < pool->out_width; x++, out += pool->out_planes * pool->words) {
            const uint32_t count = (uint32_t)(pool->row_end[y] - pool->row_begin[y]) *
                                   (uint32_t)(pool->column_end[x] - pool->column_begin[x]);
            memset(out, 0, pool->out_planes * pool->words * sizeof *out);
            for (uint32_t in_y = pool->row_begin[y]; in_y < pool->row_end[y]; in_y++)
                for (uint32_t in_x = pool->column_begin[x]; in_x < pool->column_end[x]; in_x++) {
                    const uint64_t *seen = in + ((size_t)in_y * pool->in_width + in_x) * pool->in_planes * pool->words;
                    for (uint32_t p = 0; p < pool->in_planes * pool->words; p++)
                        for (uint32_t times = pool->multiple / count, shift = 0; times; times >>= 1, shift++) {
                            uint64_t carry = times & 1 ? seen[p] : 0;
                            for (uint32_t q = p + shift * pool->words; carry; q += pool->words) {
                                const uint64_t both = out[q] & carry;
                                out[q] ^= carry;
                                carry = both;
                            }
                        }
                }
        }
}

static void maximum(const struct tna_pool *pool, const uint64_t *in, uint64_t *out)
{
    for (uint32_t y = 0; y < pool->out_height; y++)
        for (uint32_t x = 0; x < pool->out_width; x++, out += pool->words) {
            memset(out, 0, pool->words * sizeof *out);
            for (uint32_t in_y = pool->row_begin[y]; in_y < pool->row_end[y]; in_y++)
                for (uint32_t in_x = pool->column_begin[x]; in_x < pool->column_end[x]; in_x++)
                    for (uint32_t word = 0; word < pool->words; word++)
                        out[word] |= in[((size_t)in_y * pool->in_width + in_x) * pool->words + word];
        }
}

void tna_average_pool(const struct tna_pool *pool, const uint64_t *in, uint64_t *out,
                      const struct tna_scratch *scratch)
{
    for (uint32_t step = 0; step < scratch->steps; step++)
        average(pool, in + step * scratch->step_words, out + step * scratch->step_words);
}

void tna_max_pool(const struct tna_pool *pool, const uint64_t *in, uint64_t *out, const struct tna_scratch *scratch)
{
    for (uint32_t step = 0; step < scratch->steps; step++)
        maximum(pool, in + step * scratch->step_words, out + step * scratch->step_words);
}

void tna_max_pool_currents(const struct tna_pool *pool, size_t channels, const float *in, float *out,
                           const struct tna_scratch *scratch)
{
    for (uint32_t step = 0; step < scratch->steps; step++) {
        const float *seen = in + step * scratch->step_currents;
        float *most = out + step * scratch->step_currents;
        for (uint32_t y = 0; y < pool->out_height; y++)
            for (uint32_t x = 0; x < pool->out_width; x++, most += channels)
                for (uint32_t in_y = pool->row_begin[y]; in_y < pool->row_end[y]; in_y++)
                    for (uint32_t in_x = pool->column_begin[x]; in_x < pool->column_end[x]; in_x++) {
                        const float *one = seen + ((size_t)in_y * pool->in_width + in_x) * channels;
                        const int is_first = in_y == pool->row_begin[y] && in_x == pool->column_begin[x];
                        for (size_t k = 0; k < channels; k++)
                            most[k] = is_first || one[k] > most[k] ? one[k] : most[k];
                    }
    }
}

/* ---- residual blocks that join spikes -------------------------------------------------------------------------- */

static void join_step(const struct tna_join *join, const uint64_t *spikes, const uint64_t *other, uint64_t *out)
{
    const size_t words = join->words;
    for (uint32_t pixel = 0; pixel < join->pixels; pixel++) {
        for (size_t word = 0; word < words; word++) {
            uint64_t carry = spikes[word];
            for (uint32_t p = 0; p < join->out_planes; p++) {
                const uint64_t seen = p < join->in_planes ? other[p * words + word] : 0;
                if (join->kind == TNA_ADD) {
                    out[p * words + word] = seen ^ carry;
                    carry &= seen;
                } else {
                    out[p * words + word] = seen & (join->kind == TNA_AND ? spikes[word] : ~spikes[word]);
                }
            }
        }
        spikes += words;
        other += join->in_planes * words;
        out += join->out_planes * words;
    }
}

void tna_join(const struct tna_join *join, const uint64_t *spikes, const uint64_t *other, uint64_t *out,
              const struct tna_scratch *scratch)
{
    for (uint32_t step = 0; step < scratch->steps; step++) {
        const size_t first = step * scratch->step_words;
        join_step(join, spikes + first, other + first, out + first);
    }
}
