"""JAX programs of many kinds for the HLO parser: name -> (function, shapes of its arguments). Needs JAX.

Small ones cover the opcodes, `deep_*` repeat a block as models do (unrolled, with gradients) to thousands of
instructions. Nothing is run: a lowering or a compilation prints the text.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax, nn


def spec(*dims, dtype="float32"):
    return jax.ShapeDtypeStruct(dims, dtype)


def norm(x, scale=None):
    centred = x - x.mean(-1, keepdims=True)
    out = centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return out if scale is None else out * scale


def attention(x, qkv, out, heads):
    batch, length, width = x.shape
    q, k, v = jnp.split((x @ qkv).reshape(batch, length, 3 * heads, width // heads), 3, axis=2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width // heads) ** 0.5
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v)
    return mixed.reshape(batch, length, width) @ out


def block(x, p, heads=4):
    x = x + attention(norm(x, p["s1"]), p["qkv"], p["out"], heads)
    return x + nn.gelu(norm(x, p["s2"]) @ p["up"]) @ p["down"]


def block_specs(width):
    return {
        "s1": spec(width), "qkv": spec(width, 3 * width), "out": spec(width, width), "s2": spec(width),
        "up": spec(width, 4 * width), "down": spec(4 * width, width),
    }  # fmt: skip


def stack(x, layers):
    for p in layers:
        x = block(x, p)
    return x


def stack_loss(layers, x):
    return (stack(x, layers) ** 2).mean()


def uneven_loss(layers, x):
    """No two blocks of one width: nothing repeats but the pattern."""
    for between, p in layers:
        x = block(x @ between, p)
    return (x**2).mean()


def scanned(x, p):
    return lax.scan(lambda c, one: (block(c, one), c.mean()), x, p)


def residual(x, weights):
    for w1, w2 in weights:
        x = x + conv(nn.relu(conv(x, w1)), w2)
    return x.mean((1, 2))


def conv(x, w, strides=(1, 1), padding="SAME", **more):
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **more)


def mlp(x, weights):
    for w, b in weights:
        x = nn.relu(x @ w + b)
    return x


def adam(p, g, m, v):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return p - 1e-3 * m / (jnp.sqrt(v) + 1e-8), m, v


def lstm(x, w, u, b):
    def step(state, row):
        h, c = state
        i, f, g, o = jnp.split(row @ w + h @ u + b, 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((x.shape[1], u.shape[0]))
    return lax.scan(step, (zero, zero), x)


def experts(x, gate, w):
    weight, chosen = lax.top_k(nn.softmax(x @ gate), 2)
    return jnp.einsum("tk,tkd->td", weight, jnp.einsum("td,tkdf->tkf", x, w[chosen]))


def state_space(x, a, b):
    decay, drive = jnp.exp(-nn.softplus(x @ a)), x @ b
    return lax.associative_scan(lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (decay, drive))[1]


def moved(a, i):
    return lax.dynamic_update_slice(a, lax.dynamic_slice(a, (i, 0), (4, 64)) * 2, (0, i))


def newton(x):
    return lax.while_loop(
        lambda s: jnp.abs(s[0] ** 2 - 2) > 1e-6, lambda s: (s[0] - (s[0] ** 2 - 2) / (2 * s[0]), s[1] + 1), (x, 0)
    )


def switch(i, x):
    return lax.switch(i, [jnp.sin, jnp.cos, lambda y: jnp.sort(y) * 2], x)


def checkpointed(x, w):
    return jax.grad(lambda y: jax.checkpoint(lambda z: jnp.tanh(z @ w) @ w)(y).sum())(x)


def custom(x):
    return jnp.linalg.cholesky(x @ x.T + jnp.eye(x.shape[0])), jnp.linalg.qr(x), jnp.linalg.eigh(x @ x.T)


def big_constant():
    table = (jnp.arange(4096.0) * 7919 % 101).reshape(64, 64)
    with jax.ensure_compile_time_eval():
        table = table + 0.0
    return lambda x: x @ table


def many(*arrays):
    return tuple(a + i for i, a in enumerate(arrays)), sum(a.sum() for a in arrays)


def stencil(x):
    return lax.fori_loop(
        0, 10, lambda _, u: 0.25 * (jnp.roll(u, 1, 0) + jnp.roll(u, -1, 0) + jnp.roll(u, 1, 1) + jnp.roll(u, -1, 1)), x
    )


def nested(x):
    return lax.fori_loop(
        0, 3, lambda i, y: lax.cond(i > 1, lambda z: lax.fori_loop(0, i, lambda _, q: q * 1.1, z), jnp.negative, y), x
    )


def quantised(x, w):
    scale = jnp.abs(x).max() / 127
    q = jnp.clip(jnp.round(x / scale), -127, 127).astype(jnp.int8)
    return lax.dot(q, w, preferred_element_type=jnp.int32).astype(jnp.float32) * scale


def keyed(key, n=64):
    a, b = jax.random.split(key)
    return jax.random.normal(a, (n, n)), jax.random.permutation(b, n)


M, V = spec(32, 64), spec(64)


def programs() -> dict:
    """Every program by its name."""
    pool = functools.partial(
        lax.reduce_window,
        init_value=-jnp.inf,
        computation=lax.max,
        window_dimensions=(1, 2, 2, 1),
        window_strides=(1, 2, 2, 1),
        padding="VALID",
    )
    image = spec(2, 16, 16, 8)
    small = {
        "add": (jnp.add, (M, M)),
        "bias": (jnp.add, (M, V)),
        "gelu": (nn.gelu, (M,)),
        "softmax": (nn.softmax, (M,)),
        "logsumexp": (nn.logsumexp, (M,)),
        "norm": (norm, (M, V)),
        "matmul": (jnp.matmul, (M, spec(64, 16))),
        "batched": (jnp.matmul, (spec(4, 8, 16), spec(4, 16, 8))),
        "outer": (jnp.outer, (V, V)),
        "bf16": (
            lambda a, b: (a @ b).astype("float32"),
            (spec(32, 64, dtype="bfloat16"), spec(64, 16, dtype="bfloat16")),
        ),
        "f8": (lambda a: a.astype("float8_e4m3fn").astype("float32") * 2, (M,)),
        "int4": (lambda a: a.astype("int4").astype("int8") + 1, (spec(8, 16, dtype="int32"),)),
        "complex": (lambda a: jnp.fft.ifft(jnp.fft.fft(a) * 2).real, (M,)),
        "rfft": (jnp.fft.rfft2, (M,)),
        "sort": (jnp.sort, (M,)),
        "argsort": (jnp.argsort, (M,)),
        "topk": (functools.partial(lax.top_k, k=4), (M,)),
        "argmax": (jnp.argmax, (M,)),
        "cumsum": (jnp.cumsum, (V,)),
        "cummax": (lax.cummax, (M,)),
        "gather": (lambda a, i: a[i], (M, spec(5, dtype="int32"))),
        "scatter": (lambda a, i: a.at[i].add(1.0), (M, spec(5, dtype="int32"))),
        "embedding_grad": (lambda t, i: jax.grad(lambda u: (u[i] ** 2).sum())(t), (M, spec(7, dtype="int32"))),
        "slice": (lambda a: a[::2, 3:9] + a[1::2, 4:10], (M,)),
        "dynamic": (moved, (M, spec(dtype="int32"))),
        "pad": (lambda a: jnp.pad(a, ((1, 2), (0, 3)), constant_values=1.5), (M,)),
        "concat": (lambda a, b: jnp.concatenate([a, b, a], 1), (M, M)),
        "transpose": (lambda a: a.T.reshape(16, 128)[::-1], (M,)),
        "where": (lambda a, b: jnp.where(a > b, a, b - a), (M, M)),
        "many": (many, (V,) * 13),
        "iota": (lambda: jnp.arange(12.0).reshape(3, 4) * 2, ()),
        "constant": (big_constant(), (M,)),
        "bits": (lambda a: lax.bitcast_convert_type(a, "int32") >> 3 ^ 5, (M,)),
        "erf": (lambda a: lax.erf(a) + lax.lgamma(a) + lax.digamma(a), (M,)),
        "while": (newton, (spec(),)),
        "switch": (switch, (spec(dtype="int32"), V)),
        "nested": (nested, (V,)),
        "stencil": (stencil, (M,)),
        "scan": (lambda a: lax.scan(lambda c, row: (c + row, c.sum()), jnp.zeros(64), a), (M,)),
        "lstm": (lstm, (spec(10, 4, 16), spec(16, 128), spec(32, 128), spec(128))),
        "random": (keyed, (spec(2, dtype="uint32"),)),
        "dropout": (
            lambda k, a: jnp.where(jax.random.bernoulli(k, 0.9, a.shape), a / 0.9, 0),
            (spec(2, dtype="uint32"), M),
        ),
        "linalg": (custom, (spec(8, 8),)),
        "solve": (jnp.linalg.solve, (spec(8, 8), spec(8, 3))),
        "det": (jnp.linalg.det, (spec(6, 6),)),
        "conv": (conv, (image, spec(3, 3, 8, 4))),
        "conv_stride": (functools.partial(conv, strides=(2, 2), padding="VALID"), (image, spec(3, 3, 8, 4))),
        "conv_grouped": (functools.partial(conv, feature_group_count=8), (image, spec(3, 3, 1, 16))),
        "conv_dilated": (functools.partial(conv, rhs_dilation=(2, 2)), (image, spec(3, 3, 8, 4))),
        "conv_grad": (lambda x, w: jax.grad(lambda u: conv(x, u).sum())(w), (image, spec(3, 3, 8, 4))),
        "conv1d": (lambda x, w: lax.conv(x, w, (1,), "SAME"), (spec(2, 8, 32), spec(4, 8, 5))),
        "pool": (pool, (image,)),
        "pool_grad": (lambda x: jax.grad(lambda u: pool(u).sum())(x), (image,)),
        "mean_pool": (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME"), (image,)),
        "mlp": (mlp, (M, [(spec(64, 96), spec(96)), (spec(96, 8), spec(8))])),
        "mlp_grad": (jax.grad(lambda w, x: mlp(x, w).sum()), ([(spec(64, 96), spec(96)), (spec(96, 8), spec(8))], M)),
        "block": (block, (spec(2, 16, 64), block_specs(64))),
        "scanned": (scanned, (spec(2, 16, 64), jax.tree.map(lambda s: spec(5, *s.shape), block_specs(64)))),
        "adam": (adam, (M,) * 4),
        "experts": (experts, (spec(16, 32), spec(32, 8), spec(8, 32, 24))),
        "state_space": (state_space, (spec(32, 16), spec(16, 16), spec(16, 16))),
        "checkpoint": (checkpointed, (spec(8, 16), spec(16, 16))),
        "hessian": (jax.hessian(lambda v: jnp.sin(v).prod()), (spec(5),)),
        "jacobian": (jax.jacrev(lambda v: jnp.outer(v, v).sum(0)), (spec(6),)),
        "vmap": (jax.vmap(lambda a, b: jnp.convolve(a, b, mode="same")), (spec(3, 32), spec(3, 5))),
        "odeint": (lambda y: lax.fori_loop(0, 8, lambda _, s: s + 0.1 * jnp.stack([s[1], -s[0]]), y), (spec(2),)),
        "one_hot": (lambda i: nn.one_hot(i, 10) @ jnp.ones((10, 4)), (spec(9, dtype="int32"),)),
        "median": (jnp.median, (V,)),
        "histogram": (lambda a: jnp.histogram(a, 8)[0], (V,)),
        "reduce_pair": (
            lambda a: lax.reduce((a, a * 2), (0.0, 1.0), lambda x, y: (x[0] + y[0], x[1] * y[1]), (0,)),
            (M,),
        ),
        "all": (lambda a: (a > 0).all() & (a < 1).any(), (M,)),
        "searchsorted": (jnp.searchsorted, (V, spec(9))),
        "unique": (functools.partial(jnp.unique, size=8), (spec(32, dtype="int32"),)),
        "interp": (jnp.interp, (spec(9), V, V)),
        "tri": (lambda a: jnp.tril(a) + jnp.triu(a, 2), (spec(16, 16),)),
        "kron": (jnp.kron, (spec(3, 4), spec(2, 5))),
        "einsum": (functools.partial(jnp.einsum, "bij,bjk,bk->i"), (spec(3, 4, 5), spec(3, 5, 6), spec(3, 6))),
        "clip": (lambda a: jnp.clip(a, -1, 1).astype("int32") % 3, (M,)),
        "quantised": (quantised, (M, spec(64, 16, dtype="int8"))),
        "half": (lambda a: (a.astype("float16") ** 2).sum(), (M,)),
        "unsigned": (lambda a: lax.population_count(a) + lax.clz(a), (spec(16, dtype="uint8"),)),
        "barrier": (lambda a: lax.optimization_barrier((a, a + 1))[1], (M,)),
        "reverse": (lambda a: lax.rev(a, (0, 1)), (M,)),
    }
    deep = {
        "deep_mlp": (mlp, (M, [(spec(64, 64), spec(64))] * 24)),
        "deep_residual": (residual, (image, [(spec(3, 3, 8, 8), spec(3, 3, 8, 8))] * 16)),
        "deep_forward": (stack, (spec(2, 16, 64), [block_specs(64)] * 12)),
        "deep_gradient": (jax.grad(stack_loss), ([block_specs(64)] * 12, spec(2, 16, 64))),
        "deep_widths": (mlp, (M, [(spec(64 + 16 * i, 80 + 16 * i), spec(80 + 16 * i)) for i in range(24)])),
        "deep_uneven": (
            jax.grad(uneven_loss),
            ([(spec(48 + 16 * i, 64 + 16 * i), block_specs(64 + 16 * i)) for i in range(10)], spec(2, 16, 48)),
        ),
    }
    return small | deep
