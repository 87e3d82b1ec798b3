/* Coefficients and constants of the exp and log kernels.
 *
 * Derived, and printed with their errors, by tools/fit_polynomials.py; `--check` compares them with this file.
 * exp(r) = 1 + (r + r^2 q(r)) for |r| <= ln(2)/2: relative error 2^-28.2 (float), 2^-34.2 (the largest
 * term of a row of floats, in double), 2^-57.9 (double); next to powers of 2^(1/16) or 2^(1/8), for |r| <= ln(2)/32 and
 * ln(2)/16, 2^-29.2 (floats BY_16), 2^-32.4 (floats BY_8), 2^-66.2 (doubles BY_16).
 * log((1+s)/(1-s)) = 2 s + s z P(z), z = s^2, for mantissas in [sqrt(1/2), sqrt(2)]: relative error 2^-59.5; in [1, 2], for
 * LOG1P_F64: 2^-54.2.
 * log(1+f) = f - f^2/2 + f^3 P(f) for 1+f in [sqrt(1/2), 3/2]: relative error 2^-28.8 (float). */
#ifndef FS_CONSTANTS_H
#define FS_CONSTANTS_H

#define EXP_F32_C2 0x1.fffffcp-2f
#define EXP_F32_C3 0x1.555492p-3f
#define EXP_F32_C4 0x1.5558b4p-5f
#define EXP_F32_C5 0x1.123998p-7f
#define EXP_F32_C6 0x1.6a48bcp-10f

#define EXP_F32_BY_16_C2 0x1.00022p-1f
#define EXP_F32_BY_16_C3 0x1.55563ep-3f

#define EXP_F32_BY_8_C2 0x1p-1f
#define EXP_F32_BY_8_C3 0x1.555c72p-3f
#define EXP_F32_BY_8_C4 0x1.555678p-5f

/* 2^(j / 16) and 2^(j / 8) = hi + lo. */
#define EXP2_F32_BY_16_HI                                                                                             \
    0x1p+0f, 0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f,                                                          \
    0x1.306fep+0f, 0x1.3dea64p+0f, 0x1.4bfdaep+0f, 0x1.5ab07ep+0f,                                                    \
    0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f,                                                   \
    0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f
#define EXP2_F32_BY_16_LO                                                                                             \
    0x0p+0f, 0x1.9f3122p-25f, -0x1.c15742p-27f, 0x1.ceac48p-25f,                                                      \
    0x1.4636e2p-25f, 0x1.824684p-25f, -0x1.593abcp-25f, -0x1.5bd5ecp-27f,                                             \
    0x1.9fcef4p-26f, -0x1.829fdp-25f, 0x1.15506ep-27f, 0x1.51f848p-27f,                                               \
    -0x1.a94b14p-26f, -0x1.3d56b2p-27f, -0x1.822dbcp-27f, 0x1.52486cp-27f
#define EXP2_F32_BY_8_HI                                                                                              \
    0x1p+0f, 0x1.172b84p+0f, 0x1.306fep+0f, 0x1.4bfdaep+0f,                                                           \
    0x1.6a09e6p+0f, 0x1.8ace54p+0f, 0x1.ae89fap+0f, 0x1.d5818ep+0f
#define EXP2_F32_BY_8_LO                                                                                              \
    0x0p+0f, -0x1.c15742p-27f, 0x1.4636e2p-25f, -0x1.593abcp-25f,                                                     \
    0x1.9fcef4p-26f, 0x1.15506ep-27f, -0x1.a94b14p-26f, -0x1.822dbcp-27f

/* In the middle between the first and the last of them. */
#define EXP2_MIDDLE_16 0x1.6247eb03a5585p+0
#define EXP2_MIDDLE_8 0x1.5ab07dd485429p+0

#define EXP_F32_TOP_C2 0x1.0000003a6f5c4p-1
#define EXP_F32_TOP_C3 0x1.55555441c56b9p-3
#define EXP_F32_TOP_C4 0x1.55548d15249b3p-5
#define EXP_F32_TOP_C5 0x1.111271f797821p-7
#define EXP_F32_TOP_C6 0x1.6d8dac36be2b8p-10
#define EXP_F32_TOP_C7 0x1.9f080e76299b6p-13

#define EXP_F64_C2 0x1.000000000000ap-1
#define EXP_F64_C3 0x1.5555555555508p-3
#define EXP_F64_C4 0x1.555555555074ep-5
#define EXP_F64_C5 0x1.11111111253d9p-7
#define EXP_F64_C6 0x1.6c16c184532bp-10
#define EXP_F64_C7 0x1.a01a013496b32p-13
#define EXP_F64_C8 0x1.a01999b82d934p-16
#define EXP_F64_C9 0x1.71df130ff0949p-19
#define EXP_F64_C10 0x1.28adb644589fap-22
#define EXP_F64_C11 0x1.ad97823e68db9p-26

#define EXP_F64_BY_16_C2 0x1.0000000000004p-1
#define EXP_F64_BY_16_C3 0x1.5555555555544p-3
#define EXP_F64_BY_16_C4 0x1.555555548498ap-5
#define EXP_F64_BY_16_C5 0x1.111111126e714p-7
#define EXP_F64_BY_16_C6 0x1.6c183e181559fp-10
#define EXP_F64_BY_16_C7 0x1.a018f9bca57c5p-13

/* 2^(j / 16) = hi + lo. */
#define EXP2_F64_BY_16_HI                                                                                             \
    0x1p+0, 0x1.0b5586cf9890fp+0, 0x1.172b83c7d517bp+0, 0x1.2387a6e756238p+0,                                         \
    0x1.306fe0a31b715p+0, 0x1.3dea64c123422p+0, 0x1.4bfdad5362a27p+0, 0x1.5ab07dd485429p+0,                           \
    0x1.6a09e667f3bcdp+0, 0x1.7a11473eb0187p+0, 0x1.8ace5422aa0dbp+0, 0x1.9c49182a3f09p+0,                            \
    0x1.ae89f995ad3adp+0, 0x1.c199bdd85529cp+0, 0x1.d5818dcfba487p+0, 0x1.ea4afa2a490dap+0
#define EXP2_F64_BY_16_LO                                                                                             \
    0x0p+0, 0x1.8a62e4adc610bp-54, -0x1.19041b9d78a76p-55, 0x1.9b07eb6c70573p-54,                                     \
    0x1.6f46ad23182e4p-55, 0x1.ada0911f09ebcp-55, 0x1.d4397afec42e2p-56, 0x1.6324c054647adp-54,                       \
    -0x1.bdd3413b26456p-54, -0x1.41577ee04992fp-55, 0x1.6e9f156864b27p-54, 0x1.c7c46b071f2bep-56,                     \
    0x1.7a1cd345dcc81p-54, 0x1.11065895048ddp-55, 0x1.2ed02d75b3707p-55, -0x1.e9c23179c2893p-54

#define LOG_F64_P0 0x1.5555555555592p-1
#define LOG_F64_P1 0x1.999999997ff63p-2
#define LOG_F64_P2 0x1.24924941db485p-2
#define LOG_F64_P3 0x1.c71c521a19e4ap-3
#define LOG_F64_P4 0x1.74663ba339d33p-3
#define LOG_F64_P5 0x1.39a20ba58bcc9p-3
#define LOG_F64_P6 0x1.2f025183ae0a9p-3

#define LOG1P_F64_P0 0x1.5555555555937p-1
#define LOG1P_F64_P1 0x1.99999998ebcep-2
#define LOG1P_F64_P2 0x1.24924978304d7p-2
#define LOG1P_F64_P3 0x1.c71c4a6b01d1cp-3
#define LOG1P_F64_P4 0x1.7462503bf0e64p-3
#define LOG1P_F64_P5 0x1.3aa92362d5d96p-3
#define LOG1P_F64_P6 0x1.163f9a4176991p-3
#define LOG1P_F64_P7 0x1.959cada289de7p-4
#define LOG1P_F64_P8 0x1.6b517a149fbb7p-3

#define LOG1P_F32_P0 0x1.55554cp-2f
#define LOG1P_F32_P1 -0x1.0000b4p-2f
#define LOG1P_F32_P2 0x1.99a2e4p-3f
#define LOG1P_F32_P3 -0x1.55133cp-3f
#define LOG1P_F32_P4 0x1.232676p-3f
#define LOG1P_F32_P5 -0x1.02cd56p-3f
#define LOG1P_F32_P6 0x1.f0c564p-4f
#define LOG1P_F32_P7 -0x1.ac3d78p-4f
#define LOG1P_F32_P8 0x1.89b8c4p-5f

#define LOG2E_F32 0x1.715476p+0f
#define LOG2E_F64 0x1.71547652b82fep+0

/* ln(2) = hi + lo.  With a fused multiply-add hi may have all bits: n * hi is never rounded.  Without one hi is
 * short enough for n * hi to be exact (15 bits for |n| < 2^9, 41 bits for |n| < 2^12). */
#define LN2_HI_F32_FMA 0x1.62e43p-1f
#define LN2_LO_F32_FMA -0x1.05c61p-29f
#define LN2_HI_F32_NOFMA 0x1.62e4p-1f
#define LN2_LO_F32_NOFMA 0x1.7f7d1cp-20f
#define LN2_HI_F64_FMA 0x1.62e42fefa39efp-1
#define LN2_LO_F64_FMA 0x1.abc9e3b39803fp-56
#define LN2_HI_F64_NOFMA 0x1.62e42fefa4p-1
#define LN2_LO_F64_NOFMA -0x1.8432a1b0e2634p-43

#endif
