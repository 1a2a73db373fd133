// Draws a part of the Mandelbrot set as text: rows are emitted as they are done, progress as a share.
#include <nanogrid.hpp>

#include <complex>
#include <string>

namespace json = nanogrid::json;

static int escape_time(std::complex<double> c, int limit) {
    double x = 0, y = 0;
    for (int i = 0; i < limit; ++i) {
        double xx = x * x, yy = y * y;
        if (xx + yy > 4) return i;
        y = 2 * x * y + c.imag();
        x = xx - yy + c.real();
    }
    return limit;
}

int main() {
    nanogrid::start([](std::string_view event, nanogrid::context& ctx) -> std::string {
        const json::value e = json::parse(event);
        const int width = static_cast<int>(e["width"].integer(64));
        const int height = static_cast<int>(e["height"].integer(24));
        const int limit = static_cast<int>(e["iterations"].integer(1000));
        if (width < 1 || height < 1 || width > 4096 || height > 4096)
            throw std::invalid_argument("width and height must be 1 to 4096");
        const double span = e["span"].number(3.0), cx = e["x"].number(-0.6), cy = e["y"].number(0);
        const std::string shades = " .:-=+*#%";

        std::vector<std::string> rows;
        std::int64_t inside = 0;
        for (int row = 0; row < height; ++row) {
            std::string line;
            for (int column = 0; column < width; ++column) {
                const double step = span / width;
                // A character is about twice as high as it is wide.
                std::complex<double> c(cx + (column - width / 2.0) * step, cy + (row - height / 2.0) * step * 2);
                const int n = escape_time(c, limit);
                inside += n == limit;
                line += n == limit ? '@' : shades[static_cast<std::size_t>(n) % shades.size()];
            }
            ctx.emit(line + "\n");
            rows.push_back(json::text(line));
            if (row % 8 == 7) ctx.progress(json::object({{"rows", json::text(row + 1)}, {"of", json::text(height)}}));
        }
        const double area = span * span * 2 * height / width;
        return json::object({
            {"rows", json::array(rows)},
            {"inside", json::text(inside)},
            {"area", json::text(area * static_cast<double>(inside) / (double(width) * height))},
        });
    });
}
