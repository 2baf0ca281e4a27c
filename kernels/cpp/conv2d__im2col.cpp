// 2-D convolution in f32, stride 1, no padding: X is B x C x H x W, F is O x C x R x R, Y is B x O x (H-R+1) x (W-R+1).
// im2col form: the patches of TN output pixels are copied into a matrix (C*R*R) x TN, which the filters, seen as a matrix
// O x (C*R*R), multiply with MR x (NV vectors) in registers.
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

constexpr long NR = NV * LANES;

static inline long smaller(long a, long b) { return a < b ? a : b; }

struct Sizes {
    long batch, channels, height, width, outputs, filter;
    long columns() const { return width - filter + 1; }
    long plane() const { return (height - filter + 1) * columns(); }
    long depth() const { return channels * filter * filter; }
};

// patches[d][t]: the pixel under filter element d for output pixel first + t; BY_ROWS copies runs of a row at once.
static void gather(const float* __restrict x, float* __restrict patches, long first, long count, const Sizes& s) {
    for (long c = 0; c < s.channels; ++c)
        for (long p = 0; p < s.filter; ++p)
            for (long q = 0; q < s.filter; ++q) {
                const float* from = x + (c * s.height + p) * s.width + q;
                float* to = patches + ((c * s.filter + p) * s.filter + q) * TN;
                long i = first / s.columns(), j = first % s.columns();
                for (long t = 0; t < count;) {
                    const long run = BY_ROWS ? smaller(count - t, s.columns() - j) : 1;
                    if (BY_ROWS)
                        __builtin_memcpy(to + t, from + i * s.width + j, run * 4);
                    else
                        to[t] = from[i * s.width + j];
                    t += run;
                    j += run;
                    if (j == s.columns()) j = 0, ++i;
                }
                for (long t = count; t < TN; ++t) to[t] = 0.0f;
            }
}

static inline void micro(const float* __restrict f, const float* __restrict patches, float* __restrict y, long rows,
                         long width, long depth, long plane) {
    const float* row[MR];
    for (long r = 0; r < MR; ++r) row[r] = f + smaller(r, rows - 1) * depth;
    vec sum[MR][NV];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[r][v] = vec{};
    for (long k = 0; k < depth; ++k) {
        vec right[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) right[v] = *(const vec*)(patches + k * TN + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) sum[r][v] += row[r][k] * right[v];
    }
    float tile[MR][NR];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) *(vec*)(tile[r] + v * LANES) = sum[r][v];
    for (long r = 0; r < rows; ++r) __builtin_memcpy(y + r * plane, tile[r], width * 4);
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const Sizes s = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
    const float* x = (const float*)buffers[0];
    const float* f = (const float*)buffers[1];
    float* y = (float*)buffers[2];
    const long plane = s.plane(), depth = s.depth();
#pragma omp parallel num_threads(THREADS)
    {
        float* patches = (float*)__builtin_malloc(depth * TN * 4);
#pragma omp for schedule(static) collapse(2)
        for (long image = 0; image < s.batch; ++image)
            for (long first = 0; first < plane; first += TN) {
                const long count = smaller(TN, plane - first);
                gather(x + image * s.channels * s.height * s.width, patches, first, count, s);
                for (long t = 0; t < count; t += NR)
                    for (long o = 0; o < s.outputs; o += MR)
                        micro(f + o * depth, patches + t, y + (image * s.outputs + o) * plane + first + t,
                              smaller(MR, s.outputs - o), smaller(NR, count - t), depth, plane);
            }
        __builtin_free(patches);
    }
}
