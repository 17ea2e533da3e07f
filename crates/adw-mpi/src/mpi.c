/* Calls of MPI behind functions whose types are those of every C compiler. */
#include <mpi.h>
#include <stdio.h>

/* Starts MPI; 0 on success. Errors of later calls end all processes, as is MPI's default. */
int adw_mpi_start(int *rank, int *size) {
    int started, threads;
    if (MPI_Initialized(&started) || started || MPI_Init_thread(0, 0, MPI_THREAD_SERIALIZED, &threads)) return 1;
    if (threads < MPI_THREAD_SERIALIZED) {
        MPI_Finalize();
        return 1;
    }
    return MPI_Comm_rank(MPI_COMM_WORLD, rank) || MPI_Comm_size(MPI_COMM_WORLD, size);
}

/* The one transfer that is under way. */
static MPI_Request requests[2] = {MPI_REQUEST_NULL, MPI_REQUEST_NULL};
static int expected;

/* Starts to send to a rank and to receive from a rank; a negative rank stands for none. */
void adw_mpi_begin(int to, const void *sent, int num_sent, int from, void *received, int num_received) {
    expected = from < 0 ? 0 : num_received;
    if (from < 0) from = MPI_PROC_NULL;
    if (to < 0) to = MPI_PROC_NULL;
    MPI_Irecv(received, num_received, MPI_BYTE, from, 0, MPI_COMM_WORLD, &requests[0]);
    MPI_Isend(sent, num_sent, MPI_BYTE, to, 0, MPI_COMM_WORLD, &requests[1]);
}

/* Moves the transfer on; 1 once it is done. A message of another length than expected ends all processes. */
int adw_mpi_is_done(void) {
    int done, received;
    MPI_Status statuses[2];
    MPI_Testall(2, requests, &done, statuses);
    if (done && (MPI_Get_count(&statuses[0], MPI_BYTE, &received) || received != expected)) {
        fprintf(stderr, "MPI: a message of %d bytes, expected %d\n", received, expected);
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    return done;
}

void adw_mpi_finish(void) { MPI_Finalize(); }
