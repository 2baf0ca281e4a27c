// out[0] = the sum of the squares of n floats, in two launches: BLOCKS sums of parts, and the sum of those.
// A block strides over the array, UNROLL packs of VEC floats at a time. SHUFFLE: a warp adds its lanes' sums by
// shuffles, and only warps meet in shared memory; else the whole block halves them there.
// ATOMIC: the first launch clears the output, and blocks of the second one add to it; their order then is arbitrary.
constexpr int WARPS = THREADS / 32;
struct alignas(4 * VEC) Pack { float v[VEC]; };

// The block's sum, at thread 0.
__device__ __forceinline__ float block_sum(float sum, float* shared) {
    const int thread = threadIdx.x;
#if SHUFFLE
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
    if (thread % 32 == 0) shared[thread / 32] = sum;
    __syncthreads();
    if (thread < 32) {
        sum = thread < WARPS ? shared[thread] : 0.0f;
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
    }
    return sum;
#else
    shared[thread] = sum;
#pragma unroll
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) shared[thread] += shared[thread + half];
    }
    return shared[thread];
#endif
}

extern "C" __global__ void clear(float* out) { out[0] = 0.0f; }

// out: a sum for each block, or the output that they add to.
extern "C" __global__ __launch_bounds__(THREADS) void sum_parts(const float* __restrict__ x, float* __restrict__ out,
                                                                int n) {
    __shared__ float shared[SHUFFLE ? 32 : THREADS];
    const int packs = n / VEC, stride = BLOCKS * THREADS;
    const Pack* x_packs = reinterpret_cast<const Pack*>(x);
    float sums[VEC] = {};
    for (int first = blockIdx.x * THREADS + threadIdx.x; first < packs; first += UNROLL * stride) {
        Pack p[UNROLL];
#pragma unroll
        for (int k = 0; k < UNROLL; ++k) {
            const int i = first + k * stride;
            p[k] = i < packs ? x_packs[i] : Pack{};
        }
#pragma unroll
        for (int k = 0; k < UNROLL; ++k)
#pragma unroll
            for (int j = 0; j < VEC; ++j) sums[j] += p[k].v[j] * p[k].v[j];
    }
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < VEC; ++j) sum += sums[j];
    if (blockIdx.x == 0 && threadIdx.x < n % VEC) {
        const float left = x[packs * VEC + threadIdx.x];
        sum += left * left;
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x != 0) return;
#if ATOMIC
    atomicAdd(out, sum);
#else
    out[blockIdx.x] = sum;
#endif
}

extern "C" __global__ __launch_bounds__(THREADS) void sum_sums(const float* __restrict__ parts, float* __restrict__ out,
                                                               int count) {
    __shared__ float shared[SHUFFLE ? 32 : THREADS];
    float sum = 0.0f;
    for (int i = threadIdx.x; i < count; i += THREADS) sum += parts[i];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) out[0] = sum;
}
