#pragma once

#include <vector>

using Matrix = std::vector<std::vector<double>>;

// Solves a * x = b by elimination with partial pivoting; throws std::domain_error if a is singular.
std::vector<double> solve(Matrix a, std::vector<double> b);
