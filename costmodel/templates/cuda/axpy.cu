// axpy: out = 2 * x + y over n floats, each thread PER_THREAD of them, WIDTH at a time.
// Every parameter of the search space is a macro here.
template <int W> struct alignas(4 * W) Pack { float v[W]; };

extern "C" __global__ __launch_bounds__(THREADS) void axpy(const float* __restrict__ x, const float* __restrict__ y,
                                                           float* __restrict__ out, int n) {
    const int packs = n / WIDTH;
    const int first = blockIdx.x * THREADS * PER_THREAD + threadIdx.x;
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int i = first + k * THREADS;
        if (i < packs) {
            const Pack<WIDTH> a = reinterpret_cast<const Pack<WIDTH>*>(x)[i];
            const Pack<WIDTH> b = reinterpret_cast<const Pack<WIDTH>*>(y)[i];
            Pack<WIDTH> c;
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) c.v[j] = 2.0f * a.v[j] + b.v[j];
            reinterpret_cast<Pack<WIDTH>*>(out)[i] = c;
        } else if (i < packs + n % WIDTH) {
            const int j = packs * WIDTH + i - packs;  // what is left behind the last whole pack
            out[j] = 2.0f * x[j] + y[j];
        }
    }
}
