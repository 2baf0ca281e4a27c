// Attention per head in f32: O = softmax(Q K^T / sqrt(D)) V, Q and O are H x SQ x D, K and V are H x SK x D.
// Three-pass form: QB whole rows of scores are written to scratch, turned into probabilities, then multiplied with V;
// KEYS_ACROSS lays the keys (of a transposed copy of K) across the lanes, otherwise each score is a dot product along D.
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

// scores[r][0..KB) = rows of q against KB rows of k, along D.
template <int ROWS, int KEYS>
static inline void dots(const float* __restrict q, const float* __restrict k, float* __restrict scores, long stride,
                        long dim) {
    vec sum[ROWS][KEYS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int s = 0; s < KEYS; ++s) sum[r][s] = vec{};
    long d = 0;
    for (; d + LANES <= dim; d += LANES)
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
            for (int s = 0; s < KEYS; ++s) sum[r][s] += *(const vec*)(q + r * dim + d) * *(const vec*)(k + s * dim + d);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int s = 0; s < KEYS; ++s) {
            float dot = 0.0f;
#pragma GCC unroll 16
            for (int l = 0; l < LANES; ++l) dot += sum[r][s][l];
            for (long rest = d; rest < dim; ++rest) dot += q[r * dim + rest] * k[s * dim + rest];
            scores[r * stride + s] = dot;
        }
}

// out[r][0..VECS*LANES) = sum over t of left[r][t] * right[t][...]: scores from K transposed, and outputs from V.
template <int ROWS, int VECS>
static inline void gemm(const float* __restrict left, long left_stride, const float* __restrict right,
                        long right_stride, float* __restrict out, long out_stride, long depth) {
    vec sum[ROWS][VECS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) sum[r][v] = vec{};
    for (long t = 0; t < depth; ++t)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) {
            const vec x = *(const vec*)(right + t * right_stride + v * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) sum[r][v] += left[r * left_stride + t] * x;
        }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) *(vec*)(out + r * out_stride + v * LANES) = sum[r][v];
}

template <int ROWS>
static inline void product(const float* __restrict left, long left_stride, const float* __restrict right,
                           long right_stride, float* __restrict out, long out_stride, long depth, long width) {
    long j = 0;
    for (; j + KB * LANES <= width; j += KB * LANES)
        gemm<ROWS, KB>(left, left_stride, right + j, right_stride, out + j, out_stride, depth);
    for (; j + LANES <= width; j += LANES)
        gemm<ROWS, 1>(left, left_stride, right + j, right_stride, out + j, out_stride, depth);
    for (; j < width; ++j)
        for (long r = 0; r < ROWS; ++r) {
            float sum = 0.0f;
            for (long t = 0; t < depth; ++t) sum += left[r * left_stride + t] * right[t * right_stride + j];
            out[r * out_stride + j] = sum;
        }
}

// Turns one row of raw scores into probabilities; the row has room for whole vectors.
static inline void normalise(float* row, long keys, float scale) {
    const float low = -__builtin_inff();
    long j = 0;
    for (long pad = keys; pad % LANES; ++pad) row[pad] = low;
    vec top = vec{} + low, sum = vec{};
    for (j = 0; j < keys; j += LANES) {
        const vec x = *(const vec*)(row + j);
        top = x > top ? x : top;
    }
    float most = low, total = 0.0f;
    for (long l = 0; l < LANES; ++l) most = top[l] > most ? top[l] : most;
    for (j = 0; j < keys; j += LANES) {
        vec e = exponential((*(const vec*)(row + j) - most) * scale);
        for (long l = keys - j; l < LANES; ++l) e[l] = 0.0f;
        *(vec*)(row + j) = e;
        sum += e;
    }
    for (long l = 0; l < LANES; ++l) total += sum[l];
    const vec inverse = vec{} + 1.0f / total;
    for (j = 0; j < keys; j += LANES) *(vec*)(row + j) = *(const vec*)(row + j) * inverse;
}

template <int ROWS>
static inline void rows(const float* q, const float* k, const float* v, float* out, float* scores, long stride,
                        long keys, long dim, float scale) {
    if (KEYS_ACROSS) {
        product<ROWS>(q, dim, k, keys, scores, stride, dim, keys);
    } else {
        long j = 0;
        for (; j + KB <= keys; j += KB) dots<ROWS, KB>(q, k + j * dim, scores + j, stride, dim);
        for (; j < keys; ++j) dots<ROWS, 1>(q, k + j * dim, scores + j, stride, dim);
    }
    for (long r = 0; r < ROWS; ++r) normalise(scores + r * stride, keys, scale);
    product<ROWS>(scores, stride, v, dim, out, dim, keys, dim);
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const long heads = sizes[0], queries = sizes[1], keys = sizes[2], dim = sizes[3];
    const float* q = (const float*)buffers[0];
    const float* k = (const float*)buffers[1];
    const float* v = (const float*)buffers[2];
    float* out = (float*)buffers[3];
    const long stride = (keys + LANES - 1) / LANES * LANES;
    const float scale = 1.0f / __builtin_sqrtf((float)dim);
#pragma omp parallel num_threads(THREADS)
    {
        float* scores = (float*)__builtin_malloc((QB * stride + (KEYS_ACROSS ? keys * dim : 0)) * 4);
        float* turned = scores + QB * stride;
#pragma omp for schedule(static)
        for (long h = 0; h < heads; ++h) {
            const float* head_k = k + h * keys * dim;
            if (KEYS_ACROSS) {
                for (long s = 0; s < keys; ++s)
                    for (long d = 0; d < dim; ++d) turned[d * keys + s] = head_k[s * dim + d];
                head_k = turned;
            }
            const float* head_q = q + h * queries * dim;
            const float* head_v = v + h * keys * dim;
            float* head_out = out + h * queries * dim;
            long i = 0;
            for (; i + QB <= queries; i += QB)
                rows<QB>(head_q + i * dim, head_k, head_v, head_out + i * dim, scores, stride, keys, dim, scale);
            for (; i < queries; ++i)
                rows<1>(head_q + i * dim, head_k, head_v, head_out + i * dim, scores, stride, keys, dim, scale);
        }
        __builtin_free(scores);
    }
}
