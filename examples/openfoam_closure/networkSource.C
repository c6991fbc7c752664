// A momentum source of pisoFoam, or of any solver that takes fvOptions: what a network gives for the velocity.
//
// The mesh is uniform and two-dimensional, the cells of a grid from the origin on, of which some may be missing.
// The network sees the velocity, (2, lines, columns), zero where no cell is, and gives a force of the same form.
// Where nobody trains there is no force, and the solver does what it did. In parallel the first process asks for all.
#include "addToRunTimeSelectionTable.H"
#include "fvMatrices.H"
#include "fvOption.H"

#include "bb_host.h"

namespace Foam
{
namespace fv
{

class networkSource : public option
{
    word call_;
    int dims_[3];
    labelList place_;  // of each cell in the grid
    scalar spacing_;

public:

    TypeName("networkSource");

    networkSource(const word& name, const word& type, const dictionary& dict, const fvMesh& mesh)
    :
        option(name, type, dict, mesh)
    {
        read(dict);
    }

    bool read(const dictionary& dict) override
    {
        if (!option::read(dict)) return false;
        coeffs_.readEntry("fields", fieldNames_);
        applied_.setSize(fieldNames_.size(), false);
        coeffs_.readEntry("call", call_);
        coeffs_.readEntry("spacing", spacing_);
        const labelList grid(coeffs_.lookup("grid"));
        dims_[0] = 2; dims_[1] = grid[1]; dims_[2] = grid[0];
        place_.setSize(mesh_.nCells());
        forAll(place_, cell)
        {
            const vector& centre = mesh_.C()[cell];
            place_[cell] = label(centre.y() / spacing_) * grid[0] + label(centre.x() / spacing_);
        }
        return true;
    }

    void addSup(fvMatrix<vector>& eqn, const label) override
    {
        const label size = dims_[1] * dims_[2];
        const vectorField& U = eqn.psi().primitiveField();
        scalarField seen(2 * size, 0), given(2 * size, 0);
        forAll(place_, cell)
        {
            seen[place_[cell]] = U[cell].x();
            seen[size + place_[cell]] = U[cell].y();
        }
        Pstream::listCombineGather(seen, plusEqOp<scalar>());
        if (Pstream::master()) bb_exchange(call_.c_str(), seen.cdata(), 3, dims_, given.data(), 3, dims_);
        Pstream::scatter(given);
        vectorField& source = eqn.source();
        forAll(place_, cell)
        {
            const vector force(given[place_[cell]], given[size + place_[cell]], 0);
            source[cell] -= mesh_.V()[cell] * force;
        }
    }
};

defineTypeNameAndDebug(networkSource, 0);
addToRunTimeSelectionTable(option, networkSource, dictionary);

}
}
