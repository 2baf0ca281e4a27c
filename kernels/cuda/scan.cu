// y[i] = x[0] + ... + x[i] of n integers (32 bits, wrapping), in three launches: a sum for each block's part, the sums
// of those, and each part again with what lies before it. A block's part is THREADS * ITEMS * ROUNDS numbers.
// EXCHANGE: neighbouring threads read neighbouring numbers, and get ITEMS consecutive ones each through shared
// memory; else a thread reads its ITEMS consecutive ones straight from memory.
// SHUFFLE: a warp adds up by shuffles, else the block does so in shared memory, in steps that double.
constexpr int WARPS = THREADS / 32, STEP = THREADS * ITEMS;

// The sum over the threads before this one; `total` becomes the block's. Ends with all reads of `shared` done.
__device__ __forceinline__ unsigned before(unsigned value, unsigned& total, unsigned* shared) {
    const int thread = threadIdx.x;
#if SHUFFLE
    unsigned sum = value;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const unsigned other = __shfl_up_sync(0xffffffffu, sum, offset);
        if (thread % 32 >= offset) sum += other;
    }
    if (thread % 32 == 31) shared[thread / 32] = sum;
    __syncthreads();
    unsigned earlier = 0;
    total = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
        if (warp == thread / 32) earlier = total;
        total += shared[warp];
    }
    __syncthreads();
    return earlier + sum - value;
#else
    shared[thread] = value;
    __syncthreads();
#pragma unroll
    for (int offset = 1; offset < THREADS; offset *= 2) {
        const unsigned other = thread >= offset ? shared[thread - offset] : 0u;
        __syncthreads();
        shared[thread] += other;
        __syncthreads();
    }
    total = shared[THREADS - 1];
    const unsigned sum = shared[thread];
    __syncthreads();
    return sum - value;
#endif
}

// One sum for each block.
extern "C" __global__ __launch_bounds__(THREADS) void sum_parts(const unsigned* __restrict__ x,
                                                                unsigned* __restrict__ sums, int n) {
    __shared__ unsigned shared[THREADS];
    const int begin = blockIdx.x * STEP * ROUNDS;
    unsigned sum = 0, total;
#pragma unroll UNROLL
    for (int k = 0; k < ITEMS * ROUNDS; ++k) {
        const int i = begin + k * THREADS + threadIdx.x;
        if (i < n) sum += x[i];
    }
    before(sum, total, shared);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// One block turns the sums into what lies before each.
extern "C" __global__ __launch_bounds__(THREADS) void scan_sums(unsigned* sums, int count) {
    __shared__ unsigned shared[THREADS];
    unsigned carried = 0, total;
    for (int first = 0; first < count; first += THREADS) {
        const int i = first + threadIdx.x;
        const unsigned value = i < count ? sums[i] : 0u;
        const unsigned sum = before(value, total, shared);
        if (i < count) sums[i] = carried + sum;
        carried += total;
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void scan_parts(const unsigned* __restrict__ x,
                                                                 const unsigned* __restrict__ sums,
                                                                 unsigned* __restrict__ y, int n) {
    __shared__ unsigned shared[THREADS];
#if EXCHANGE
    __shared__ unsigned tile[STEP + STEP / 32];  // a word after every 32 spreads the threads over the banks
    auto at = [&](int i) -> unsigned& { return tile[i + i / 32]; };
#endif
    unsigned carried = sums[blockIdx.x], total;
    for (int round = 0; round < ROUNDS; ++round) {
        const int begin = (blockIdx.x * ROUNDS + round) * STEP;
        unsigned values[ITEMS];
#if EXCHANGE
#pragma unroll
        for (int k = 0; k < ITEMS; ++k) {
            const int i = k * THREADS + threadIdx.x;
            at(i) = begin + i < n ? x[begin + i] : 0u;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < ITEMS; ++k) values[k] = at(threadIdx.x * ITEMS + k);
#else
#pragma unroll
        for (int k = 0; k < ITEMS; ++k) {
            const int i = begin + threadIdx.x * ITEMS + k;
            values[k] = i < n ? x[i] : 0u;
        }
#endif
#pragma unroll
        for (int k = 1; k < ITEMS; ++k) values[k] += values[k - 1];
        const unsigned sum = carried + before(values[ITEMS - 1], total, shared);
        carried += total;
#if EXCHANGE
#pragma unroll
        for (int k = 0; k < ITEMS; ++k) at(threadIdx.x * ITEMS + k) = sum + values[k];
        __syncthreads();
#pragma unroll
        for (int k = 0; k < ITEMS; ++k) {
            const int i = k * THREADS + threadIdx.x;
            if (begin + i < n) y[begin + i] = at(i);
        }
        __syncthreads();
#else
#pragma unroll
        for (int k = 0; k < ITEMS; ++k) {
            const int i = begin + threadIdx.x * ITEMS + k;
            if (i < n) y[i] = sum + values[k];
        }
#endif
    }
}
