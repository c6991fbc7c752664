C     Heating of a slab, written as such codes were: what a call works on is in a common block.
C     SETUP puts the profile and the heat fluxes there, ADVANCE works on them, RESULT reads them.
C     Lengths in thicknesses, temperatures in 1000 K, times in diffusion times of the cold slab.
      SUBROUTINE SETUP(PROFIL, FLUXES)
      DOUBLE PRECISION PROFIL(10), FLUXES(8)
      DOUBLE PRECISION T(10), Q(8), HOT
      COMMON /SLAB/ T, Q, HOT
      INTEGER I
      DO 10 I = 1, 10
        T(I) = PROFIL(I)
   10 CONTINUE
      DO 20 I = 1, 8
        Q(I) = FLUXES(I)
   20 CONTINUE
      HOT = T(1)
      END

      SUBROUTINE ADVANCE
      DOUBLE PRECISION T(10), Q(8), HOT, F(11), DX, DT, CAP
      COMMON /SLAB/ T, Q, HOT
      INTEGER I, N, M
      DX = 0.1D0
      DT = 0.25D0 * DX * DX
      DO 50 M = 1, 8
        DO 40 N = 1, 48
C         heat enters on the left; conductivity falls with temperature
          F(1) = Q(M)
          DO 10 I = 2, 10
            F(I) = (T(I-1) - T(I)) / DX
            F(I) = F(I) / (1D0 + 0.3D0 * (T(I-1) + T(I)))
   10     CONTINUE
          F(11) = 0D0
          DO 20 I = 1, 10
C           steel takes up more heat where its lattice changes
            CAP = 1D0 + 2D0 * EXP(-((T(I) - 1D0) / 0.1D0) ** 2)
            T(I) = T(I) + DT * (F(I) - F(I+1)) / DX / CAP
   20     CONTINUE
          HOT = MAX(HOT, T(1))
   40   CONTINUE
   50 CONTINUE
      END

      SUBROUTINE RESULT(PROFIL, HOTTES)
      DOUBLE PRECISION PROFIL(10), HOTTES
      DOUBLE PRECISION T(10), Q(8), HOT
      COMMON /SLAB/ T, Q, HOT
      INTEGER I
      DO 10 I = 1, 10
        PROFIL(I) = T(I)
   10 CONTINUE
      HOTTES = HOT
      END
