// C = A @ B in f32, row-major, any sizes. A block computes BM x BN of C in steps of BK, a thread TM x TN of them in
// registers. A lies transposed in shared memory, so a thread reads both operands along rows.
// SPREAD: a thread's columns lie THREADS_N apart (no bank conflicts) instead of side by side (wide reads).
// STAGES 2: the next tiles are on their way from memory while these are multiplied, at one barrier a step.
constexpr int THREADS_M = BM / TM, THREADS_N = BN / TN, THREADS = THREADS_M * THREADS_N;
constexpr int A_LOADS = BM * BK / VEC / THREADS, B_LOADS = BK * BN / VEC / THREADS;

struct alignas(4 * VEC) Pack { float v[VEC]; };

// VEC floats of a row; zero beyond the matrix. VEC divides the row's length.
__device__ __forceinline__ Pack read(const float* __restrict__ x, int row, int column, int rows, int columns) {
    Pack p = {};
    if (row < rows && column < columns)
        p = *reinterpret_cast<const Pack*>(x + static_cast<size_t>(row) * columns + column);
    return p;
}

extern "C" __global__ __launch_bounds__(THREADS, MIN_BLOCKS) void matmul(const float* __restrict__ a,
                                                                         const float* __restrict__ b,
                                                                         float* __restrict__ c, int M, int N, int K) {
    __shared__ __align__(16) float a_tile[STAGES][BK][BM + PAD];
    __shared__ __align__(16) float b_tile[STAGES][BK][BN];
    const int thread = threadIdx.x, tm = thread / THREADS_N, tn = thread % THREADS_N;
    const int row0 = blockIdx.y * BM, column0 = blockIdx.x * BN;
    float sum[TM][TN] = {};
    Pack a_next[A_LOADS], b_next[B_LOADS];

    auto fetch = [&](int k0) {
#pragma unroll
        for (int i = 0; i < A_LOADS; ++i) {
            const int at = (thread + i * THREADS) * VEC;
            a_next[i] = read(a, row0 + at / BK, k0 + at % BK, M, K);
        }
#pragma unroll
        for (int i = 0; i < B_LOADS; ++i) {
            const int at = (thread + i * THREADS) * VEC;
            b_next[i] = read(b, k0 + at / BN, column0 + at % BN, K, N);
        }
    };
    auto keep = [&](int stage) {
#pragma unroll
        for (int i = 0; i < A_LOADS; ++i) {
            const int at = (thread + i * THREADS) * VEC;
#pragma unroll
            for (int j = 0; j < VEC; ++j) a_tile[stage][at % BK + j][at / BK] = a_next[i].v[j];
        }
#pragma unroll
        for (int i = 0; i < B_LOADS; ++i) {
            const int at = (thread + i * THREADS) * VEC;
            *reinterpret_cast<Pack*>(&b_tile[stage][at / BN][at % BN]) = b_next[i];
        }
    };
    auto multiply = [&](int stage) {
#pragma unroll 8  // all of BK: the compiler would read more ahead than registers hold
        for (int k = 0; k < BK; ++k) {
            float left[TM], right[TN];
#pragma unroll
            for (int i = 0; i < TM; ++i) left[i] = a_tile[stage][k][tm * TM + i];
#pragma unroll
            for (int j = 0; j < TN; ++j) right[j] = b_tile[stage][k][SPREAD ? tn + j * THREADS_N : tn * TN + j];
#pragma unroll
            for (int i = 0; i < TM; ++i)
#pragma unroll
                for (int j = 0; j < TN; ++j) sum[i][j] += left[i] * right[j];
        }
    };

    fetch(0);
    keep(0);
    __syncthreads();
    int stage = 0;
    for (int k0 = BK; k0 < K; k0 += BK) {
        if (STAGES == 2) {
            fetch(k0);
            multiply(stage);
            stage ^= 1;
        } else {
            multiply(stage);
            __syncthreads();
            fetch(k0);
        }
        keep(stage);
        __syncthreads();
    }
    multiply(stage);

#pragma unroll
    for (int i = 0; i < TM; ++i) {
        const int row = row0 + tm * TM + i;
#pragma unroll
        for (int j = 0; j < TN; ++j) {
            const int column = column0 + (SPREAD ? tn + j * THREADS_N : tn * TN + j);
            if (row < M && column < N) c[static_cast<size_t>(row) * N + column] = sum[i][j];
        }
    }
}
