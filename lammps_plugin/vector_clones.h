// SPDX-License-Identifier: MIT
// Two versions of a loop: one for processors with fused multiply-adds of four numbers, and one for all others of the
// kind; the program chooses at its start.

#ifndef LES_MD_VECTOR_CLONES_H
#define LES_MD_VECTOR_CLONES_H

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define LES_MD_CLONES __attribute__((target_clones("arch=haswell", "default")))
#else
#define LES_MD_CLONES
#endif

#endif
