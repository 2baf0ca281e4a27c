// Attention per head in f32: O = softmax(Q K^T / sqrt(D)) V, Q and O are H x SQ x D, K and V are H x SK x D.
// Blocked form: BK keys at a time are transposed, so that lanes hold keys; BQ query rows take their scores, exponentials
// and outputs block by block, with one rescaling per block (the scheme of FlashAttention).
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

// e^x for x <= 0 by 2^n * polynomial (the coefficients are those of Cephes' expf), or lane by lane through libm.
static inline vec exponential(vec x) {
    if (LIBM) {
#pragma GCC unroll 16
        for (int l = 0; l < LANES; ++l) x[l] = __builtin_expf(x[l]);
        return x;
    }
    x = x > -87.0f ? x : vec{} - 87.0f;
    const vec shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the low bits of the sum hold the rounded exponent
    const vec n = shifted - 12582912.0f;
    const vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

static inline long smaller(long a, long b) { return a < b ? a : b; }

static void transpose(const float* __restrict k, float* __restrict turned, long count, long dim) {
    for (long s = 0; s < count; ++s)
        for (long d = 0; d < dim; ++d) turned[d * BK + s] = k[s * dim + d];
    for (long s = count; s < BK; ++s)
        for (long d = 0; d < dim; ++d) turned[d * BK + s] = 0.0f;
}

// NV vectors of scores of one query, and their maximum over the first `count` keys.
static inline vec scores_of(const float* __restrict q, const float* __restrict turned, float* __restrict scores,
                            long count, long dim, float scale, vec top) {
    const float low = -1e30f;
    for (long j = 0; j < count; j += NV * LANES) {
        vec sum[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[v] = vec{};
        for (long d = 0; d < dim; ++d)
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) sum[v] += q[d] * *(const vec*)(turned + d * BK + j + v * LANES);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) *(vec*)(scores + j + v * LANES) = sum[v] * scale;
    }
    for (long j = count; j < BK; ++j) scores[j] = low;
    for (long j = 0; j < count; j += LANES) {
        const vec x = *(const vec*)(scores + j);
        top = x > top ? x : top;
    }
    return top;
}

// out += probabilities of `count` keys times V.
static inline void weigh(const float* __restrict p, const float* __restrict v, float* __restrict out, long count,
                         long dim, float factor) {
    long d = 0;
    for (; d + NV * LANES <= dim; d += NV * LANES) {
        vec sum[NV];
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) sum[n] = *(const vec*)(out + d + n * LANES) * factor;
        for (long s = 0; s < count; ++s)
#pragma GCC unroll 4
            for (int n = 0; n < NV; ++n) sum[n] += p[s] * *(const vec*)(v + s * dim + d + n * LANES);
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) *(vec*)(out + d + n * LANES) = sum[n];
    }
    for (; d < dim; ++d) {
        float sum = out[d] * factor;
        for (long s = 0; s < count; ++s) sum += p[s] * v[s * dim + d];
        out[d] = sum;
    }
}

// One query row meets one block of keys.
static inline void meet(const float* q, const float* turned, const float* v, float* out, float* scores, float& most,
                        float& total, long count, long dim, float scale) {
    const vec top = scores_of(q, turned, scores, count, dim, scale, vec{} + most);
    float now = most;
    for (long l = 0; l < LANES; ++l) now = top[l] > now ? top[l] : now;
    vec sum = {};
    for (long j = 0; j < count; j += LANES) {
        vec e = exponential(*(const vec*)(scores + j) - now);
        for (long l = count - j; l < LANES; ++l) e[l] = 0.0f;
        *(vec*)(scores + j) = e;
        sum += e;
    }
    const float factor = exponential(vec{} + (most - now))[0];
    total *= factor;
    for (long l = 0; l < LANES; ++l) total += sum[l];
    most = now;
    weigh(scores, v, out, count, dim, factor);
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const long heads = sizes[0], queries = sizes[1], keys = sizes[2], dim = sizes[3];
    const float* q = (const float*)buffers[0];
    const float* k = (const float*)buffers[1];
    const float* v = (const float*)buffers[2];
    float* out = (float*)buffers[3];
    const float scale = 1.0f / __builtin_sqrtf((float)dim);
#pragma omp parallel num_threads(THREADS)
    {
        float* turned = (float*)__builtin_malloc((BK * dim + BK) * 4);
        float* scores = turned + BK * dim;
#pragma omp for schedule(static) collapse(2)
        for (long h = 0; h < heads; ++h)
            for (long i = 0; i < queries; i += BQ) {
                const long rows = smaller(BQ, queries - i);
                const long first = h * queries + i;
                float most[BQ], total[BQ];
                for (long r = 0; r < rows; ++r) most[r] = -1e30f, total[r] = 0.0f;
                __builtin_memset(out + first * dim, 0, rows * dim * 4);
                for (long j = 0; j < keys; j += BK) {
                    const long count = smaller(BK, keys - j);
                    transpose(k + (h * keys + j) * dim, turned, count, dim);
                    for (long r = 0; r < rows; ++r)
                        meet(q + (first + r) * dim, turned, v + (h * keys + j) * dim, out + (first + r) * dim, scores,
                             most[r], total[r], count, dim, scale);
                }
                for (long r = 0; r < rows; ++r)
                    for (long d = 0; d < dim; ++d) out[(first + r) * dim + d] /= total[r];
            }
        __builtin_free(turned);
    }
}
