/* Adds one client's part of a float32 piece to the float64 sums in one pass. WeightedSum.add in mean.py does the same in
   four numpy calls. orchestrator/deployment/function_zip.py compiles this file for the function's processor.

   The sums have the same bits as numpy's, because the product is rounded before it is added. The compiler must not
   contract the two operations into one (-ffp-contract=off). The squares are added in another order than numpy's. */

#include <stddef.h>

/* Eight values, aligned as single values are. The compiler divides them among the processor's registers. */
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
