// Solves a system of linear equations given as {"matrix": [[..]], "vector": [..]}.
#include <nanogrid.hpp>

#include "solve.hpp"

namespace json = nanogrid::json;

static std::vector<double> numbers(const json::value& list) {
    std::vector<double> out;
    for (const auto& item : list.items()) {
        if (!item.is_number()) throw std::invalid_argument("matrix and vector must hold numbers");
        out.push_back(item.number());
    }
    return out;
}

int main() {
    nanogrid::start([](std::string_view event, nanogrid::context&) -> std::string {
        const json::value e = json::parse(event);
        Matrix matrix;
        for (const auto& row : e["matrix"].items()) matrix.push_back(numbers(row));
        const std::vector<double> vector = numbers(e["vector"]);
        if (vector.empty() || matrix.size() != vector.size())
            throw std::invalid_argument("matrix needs as many rows as vector has numbers, and at least one");
        for (const auto& row : matrix)
            if (row.size() != vector.size()) throw std::invalid_argument("matrix must be square");

        const std::vector<double> x = solve(matrix, vector);
        std::vector<std::string> solution;
        double residual = 0;
        for (std::size_t i = 0; i < x.size(); ++i) {
            double sum = -vector[i];
            for (std::size_t j = 0; j < x.size(); ++j) sum += matrix[i][j] * x[j];
            residual = std::max(residual, std::abs(sum));
            solution.push_back(json::text(x[i]));
        }
        return json::object({{"x", json::array(solution)}, {"residual", json::text(residual)}});
    });
}
