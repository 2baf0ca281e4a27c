// counts[b] = how many of n values are b, for values of 0 <= b < bins, in two launches: clear and, by BLOCKS blocks,
// count.
// PRIVATE: a block counts in shared memory, in COPIES histograms that its warps (BY_LANE: its lanes) use in turn, and
// adds them to the output at its end. Else every value is an addition to memory.
// MERGE: lanes of a warp that hold the same value make one addition of it.
struct alignas(4 * VEC) Pack { int v[VEC]; };

__device__ __forceinline__ void count(int* counts, int value, bool real) {
#if MERGE
    const unsigned same = __match_any_sync(0xffffffffu, real ? value : -1);
    const int lane = threadIdx.x % 32;
    if (real && __ffs(same) - 1 == lane) atomicAdd(counts + value, __popc(same));
#else
    if (real) atomicAdd(counts + value, 1);
#endif
}

extern "C" __global__ __launch_bounds__(THREADS) void clear(int* counts, int bins) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i < bins) counts[i] = 0;
}

extern "C" __global__ __launch_bounds__(THREADS) void histogram(const int* __restrict__ x, int* __restrict__ counts,
                                                                int n, int bins) {
    int* target = counts;
#if PRIVATE
    extern __shared__ int copies[];
    for (int i = threadIdx.x; i < COPIES * bins; i += THREADS) copies[i] = 0;
    __syncthreads();
    target = copies + (BY_LANE ? threadIdx.x : threadIdx.x / 32) % COPIES * bins;
#endif
    const int packs = n / VEC, stride = BLOCKS * THREADS;
    const Pack* x_packs = reinterpret_cast<const Pack*>(x);
    // Whole warps go around together, because lanes merge.
    for (int first = blockIdx.x * THREADS + threadIdx.x / 32 * 32; first < packs; first += stride) {
        const int i = first + threadIdx.x % 32;
        const Pack p = i < packs ? x_packs[i] : Pack{};
#pragma unroll
        for (int j = 0; j < VEC; ++j) count(target, p.v[j], i < packs);
    }
    if (blockIdx.x == 0 && threadIdx.x < 32) {
        const int i = packs * VEC + threadIdx.x;
        count(target, i < n ? x[i] : 0, i < n);
    }
#if PRIVATE
    __syncthreads();
    for (int b = threadIdx.x; b < bins; b += THREADS) {
        int sum = 0;
#pragma unroll
        for (int copy = 0; copy < COPIES; ++copy) sum += copies[copy * bins + b];
        if (sum) atomicAdd(counts + b, sum);
    }
#endif
}
