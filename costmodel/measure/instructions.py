"""Machine instructions by what they do: one set of classes for NVIDIA's SASS and AMD's GCN, CDNA and RDNA assembly."""

from __future__ import annotations

import re

CLASSES = (
    "tensor_ops", "global_loads", "global_stores", "shared_loads", "shared_stores", "local_loads", "local_stores",
    "async_copies", "atomics", "tensor_memory_moves", "barriers", "warp_exchanges", "fp16_ops", "fp32_ops", "fp64_ops",
    "int_ops", "conversions", "special_functions", "branches", "other_instructions",
)  # fmt: skip

# The first pattern that an opcode matches decides. SASS: the part before the first dot, except where a dot is shown.
_NVIDIA = [
    ("", r"NOP"),
    ("tensor_ops", r"[HIBDQO]G?MMA|UTC[A-Z]*MMA"),
    ("async_copies", r"LDGSTS|UTMALDG|UTMASTG|UTMAREDG|UBLKCP|UBLKRED"),
    ("tensor_memory_moves", r"LDTM|STTM|UTCCP"),
    ("global_loads", r"LDG|LD|LDGMC|TEX|TLD"),
    ("global_stores", r"STG|ST"),
    ("shared_loads", r"LDS|LDSM"),
    ("shared_stores", r"STS|STSM"),
    ("local_loads", r"LDL"),
    ("local_stores", r"STL"),
    ("atomics", r"ATOM|ATOMG|ATOMS|RED|REDG|REDAS|SUATOM"),
    ("barriers", r"BAR|SYNCS|MEMBAR|ERRBAR|DEPBAR|LDGDEPBAR|ARRIVES|WARPSYNC|WARPGROUP|UCGABAR_\w+|CGAERRBAR|FENCE|"
                 r"CCTL|UTMACMDFLUSH|UTMACCTL|ACQBULK|UTCBAR|UTCATOMSWS|ELECT|NANOSLEEP"),
    ("warp_exchanges", r"SHFL|VOTE|VOTEU|REDUX|CREDUX|MATCH"),
    ("branches", r"BRA|BRX|BRXU|JMP|JMX|JMXU|CALL|RET|EXIT|BSSY|BSYNC|BREAK|KILL|YIELD|BMOV|PREEXIT|WARPEXIT|RPCMOV|"
                 r"UBRA|UCALL|URET"),
    ("conversions", r"U?F2F|U?F2I|U?I2F|U?F2FP|U?FRND|U?I2FP|I2I|I2IP|F2IP"),
    ("special_functions", r"MUFU"),
    ("fp64_ops", r"D(ADD|MUL|FMA|SETP|MNMX)"),
    ("fp16_ops", r"H(ADD|MUL|FMA|SETP|SET|MNMX)2|H\w*2"),
    ("other_instructions", r"IMAD\.MOV"),
    ("int_ops", r"U?FLO|U?IADD\w*|U?IMAD\w*|U?IMUL\w*|U?IABS|U?IMNMX|U?ISETP|ISET|ISCADD\w*|U?I?LEA|U?LOP\w*|U?PLOP3|"
                r"U?SHF|U?SHL|U?SHR|U?POPC|U?BREV|U?BMSK|U?SGXT|U?VI\w+|VABSDIFF\w*|IDP\w*|BFE|BFI|XMAD|ICMP|UFLO"),
    ("fp32_ops", r"U?F(ADD|MUL|FMA|SETP|SET|MNMX|SEL|CHK|CMP|SWZ|RND)\w*"),
]  # fmt: skip

# AMD: the mnemonic with its suffixes; memory instructions are told apart by more than it (see amd_class).
_AMD = [
    ("", r"s_nop|s_code_end|s_delay_alu|s_clause|s_inst_prefetch|s_set_inst_prefetch_distance"),
    ("tensor_ops", r"v_(mfma|smfmac|wmma|swmmac)_\w+"),
    ("async_copies", r"global_load_(async_to_)?lds_\w+|tensor_(load_to|store_from)_lds\w*"),
    ("atomics", r"(global|flat|buffer|ds)_(\w*_)?(atomic|add|sub|inc|dec|min|max|and|or|xor|cmpst|cmpstore|wrxchg|"
                r"storexchg|pk_add|add_rtn|max_rtn|min_rtn)_\w+"),
    ("warp_exchanges", r"ds_(b?permute|swizzle)\w*|v_permlane\w+|v_\w+_dpp|v_readlane_\w+|v_writelane_\w+"),
    ("global_loads", r"(global|buffer|flat)_load_\w+"),
    ("global_stores", r"(global|buffer|flat)_store_\w+"),
    ("shared_loads", r"ds_(read|load)\w*"),
    ("shared_stores", r"ds_(write|store)\w*"),
    ("local_loads", r"scratch_load_\w+"),
    ("local_stores", r"scratch_store_\w+"),
    ("barriers", r"s_barrier\w*|s_wait\w*|buffer_(gl0|gl1|wbl2|inv|wbinvl1)\w*|global_(inv|wb)\w*|s_sleep"),
    ("branches", r"s_c?branch\w*|s_endpgm\w*|s_setpc\w*|s_swappc\w*|s_getpc\w*|s_call\w*|s_(and|or|andn2|and_not1)_"
                 r"(saveexec|wrexec)_\w+"),
    ("conversions", r"v_cvt_\w+|v_pack_b32\w*|v_(rndne|trunc|ceil|floor|fract)_\w+"),
    ("special_functions", r"v_s?_?(exp|log|rcp|rsq|sqrt|sin|cos)\w*_f\w+"),
    ("other_instructions", r"[vs]_mov\w*|v_cndmask\w*|v_readfirstlane\w*|v_accvgpr\w*|s_load\w*|s_buffer_load\w*|"
                           r"s_cselect\w*|v_swap\w*|v_dual_mov\w*"),
    ("fp64_ops", r"v_\w+_f64(_e\d+)?"),
    ("fp16_ops", r"v_\w+_(b?f16)(_e\d+|_sdwa)?|v_pk_\w+_b?f16|v_dot2\w*_f16\w*"),
    ("fp32_ops", r"v_\w+_f32(_e\d+|_sdwa)?|v_(mad_mix|fma_mix)\w*|v_dual_\w+|v_ldexp\w*"),
    ("int_ops", r"[vs]_\w+_[uib](8|16|24|32|64)\w*|v_(lshl|add|sub|and|or|xor|mad|perm|alignbit|bfi|bfe)\w*"),
]  # fmt: skip


def _compiled(table: list[tuple[str, str]]) -> list[tuple[str, re.Pattern[str]]]:
    return [(name, re.compile(pattern)) for name, pattern in table]


_NVIDIA_PATTERNS, _AMD_PATTERNS = _compiled(_NVIDIA), _compiled(_AMD)


def nvidia_class(opcode: str) -> str:
    """The class of a SASS opcode such as "LDG.E.128"; empty for padding."""
    base = opcode.partition(".")[0]
    text = "IMAD.MOV" if opcode.startswith("IMAD.MOV") else base
    return _first_match(_NVIDIA_PATTERNS, text)


def amd_class(line: str) -> str:
    """The class of a line of AMD assembly; empty for what the hardware does not execute."""
    mnemonic = line.split(None, 1)[0]
    if "Folded Spill" in line:
        return "local_stores"
    if "Folded Reload" in line:
        return "local_loads"
    if mnemonic.startswith("buffer_load") and re.search(r"\blds\b", line.partition(";")[0]):
        return "async_copies"
    return _first_match(_AMD_PATTERNS, mnemonic)


def _first_match(patterns: list[tuple[str, re.Pattern[str]]], text: str) -> str:
    for name, pattern in patterns:
        if pattern.fullmatch(text):
            return name
    return "other_instructions"
