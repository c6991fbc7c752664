/* training.function of the tests: reads `a = ...` and `b = ...` from a case file, prints the two results. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    double a, b;
    FILE *file = argc == 2 ? fopen(argv[1], "r") : NULL;
    if (file == NULL || fscanf(file, " a = %lf b = %lf", &a, &b) != 2) {
        fprintf(stderr, "cannot read the case\n");
        return 2;
    }
    if (a > 1e6) {
        fprintf(stderr, "diverged at a = %g\n", a);
        return 3;
    }
    printf("solved\nresult: %.17g %.17g\n", sin(a) + 0.5 * b, a * b + b);
    return 0;
}
