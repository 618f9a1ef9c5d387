/* One client's part of a float32 piece, added to the float64 sums in one pass: what WeightedSum.add in average.py does
   in four numpy calls. orchestrator/package.py compiles it for the function's processor.

   The sums have numpy's bits: the product is rounded, then the sum, as long as the compiler does not contract the two
   into one operation (-ffp-contract=off). The squares are added up in another order than numpy's. */

#include <stddef.h>

/* Eight values at a time, at any address that a value may have. The compiler cuts them to the processor's registers. */
typedef float Floats __attribute__((vector_size(8 * sizeof(float)), aligned(sizeof(float))));
typedef double Doubles __attribute__((vector_size(8 * sizeof(double)), aligned(sizeof(double))));

/* sums[i] += weight * values[i] for 0 <= i < count; returns the sum of the squares of weight * values[i]. */
double fold_float32(const float *restrict values, double weight, double *restrict sums, size_t count) {
    Doubles eight = {0};
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        Doubles weighted = weight * __builtin_convertvector(*(const Floats *)(values + i), Doubles);
        *(Doubles *)(sums + i) += weighted;
        eight += weighted * weighted;
    }
    double squares = 0;
    for (size_t lane = 0; lane < 8; lane++)
        squares += eight[lane];
    for (; i < count; i++) {
        double weighted = weight * (double)values[i];
        sums[i] += weighted;
        squares += weighted * weighted;
    }
    return squares;
}
