/* An MPI program: each rank integrates its share of sin(a x) over [0, 1], and rank 0 prints the sum. */
#include <math.h>
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv) {
    int rank, size, cells = 1000;
    double a, part = 0, whole = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    FILE *file = fopen("case.txt", "r");
    if (!file || fscanf(file, "a = %lf", &a) != 1) MPI_Abort(MPI_COMM_WORLD, 2);
    if (a < 0) MPI_Abort(MPI_COMM_WORLD, 3); /* as solvers do that diverge */
    while (a > 100); /* and as those do that hang */
    for (int i = rank; i < cells; i += size) part += sin(a * (i + 0.5) / cells) / cells;
    MPI_Reduce(&part, &whole, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0) printf("integral: %.17g of %d ranks\n", whole, size);
    MPI_Finalize();
    return 0;
}
