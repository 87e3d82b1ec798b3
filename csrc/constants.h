/* Coefficients and constants of the exp and log kernels.
 *
 * Derived, and printed with their errors, by tools/fit_polynomials.py; `--check` compares them with this file.
 * exp(r) = 1 + (r + r^2 q(r)) for |r| <= ln(2)/2: relative error 2^-28.2 (float), 2^-34.2 (the largest
 * term of a row of floats, in double), 2^-57.9 (double).
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
