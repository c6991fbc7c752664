/* bb_host: a program asks a network in the middle of its work, and goes on with the answer.
 *
 * Add bb_host.h and bb_host.c to your program; C99 and POSIX, nothing else. In the time loop:
 *
 *     int dims[] = {64, 64};
 *     if (!bb_exchange("closure", vorticity, 2, dims, tendency, 2, dims))
 *         my_own_closure(vorticity, tendency);        // nobody trains: the program runs as ever
 *
 * The program is connected when a trainer has started it (the variable BLACKBOX_HOST names a socket). If it was
 * not, calls do nothing and return 0. What goes wrong in between, a wrong shape or a trainer that has gone, ends
 * the program with status 70 and a sentence on standard error.
 *
 * Arrays are in row order (the last index is the fastest), unless bb_columns(1) was called. `rank` is the number
 * of dimensions, at most 4; 0 for a single number. Call from one thread at a time, and not from a forked child.
 */
#ifndef BB_HOST_H
#define BB_HOST_H

#ifdef __cplusplus
extern "C" {
#endif

enum { BB_FLOAT = 1, BB_DOUBLE = 2, BB_INT = 3, BB_LONG = 4, BB_BYTE = 5 }; /* 4, 8, 4, 8 and 1 bytes */

/* Connect, if a trainer has started the program; 1 if so, else 0. The others call it by themselves. */
int bb_open(void);

/* Connect as one of several processes (ranks of MPI) that each ask with their part of the arrays. */
int bb_open_part(int rank, int size);

/* Ask for a call with one array of doubles, answered by one; 1 if answered, 0 where nobody trains. */
int bb_exchange(const char *call, const double *in, int in_rank, const int *in_dims, double *out, int out_rank,
                const int *out_dims);

/* The same in single precision. */
int bb_exchange_float(const char *call, const float *in, int in_rank, const int *in_dims, float *out,
                      int out_rank, const int *out_dims);

/* A call with several arrays: put each, then call, then get each. `data` of bb_put must stay as it is until
 * bb_call. bb_call returns 1 if answered, 0 where nobody trains; bb_get must then not be called. */
void bb_put(const char *name, int type, int rank, const int *dims, const void *data);
void bb_put_copy(const char *name, int type, int rank, const int *dims, const void *data); /* may change at once */
int bb_call(const char *call);
void bb_get(const char *name, int type, int rank, const int *dims, void *data);

/* As bb_put, of a part: where it begins in the whole array, and how large that is. Answers with the dimensions of
 * the whole come back as the same part, all others whole to each process. */
void bb_put_part(const char *name, int type, int rank, const int *dims, const int *first, const int *whole,
                 const void *data);
void bb_put_part_copy(const char *name, int type, int rank, const int *dims, const int *first, const int *whole,
                      const void *data); /* may change at once */

/* Hand over a result of the run, such as a drag. */
void bb_output(const char *name, int type, int rank, const int *dims, const void *data);

/* Say that nothing will be asked any more. The end of the program says so too. */
void bb_close(void);

/* From now on arrays are in column order (1), as Fortran has them, or in row order (0). */
void bb_columns(int on);

#ifdef __cplusplus
}
#endif
#endif
