// nanogrid.hpp: serves a C++ function on a NanoGrid worker. One header, C++17, Linux.
//
//   #include <nanogrid.hpp>
//   int main() {
//       nanogrid::start([](std::string_view event, nanogrid::context& ctx) -> std::string {
//           auto n = nanogrid::json::parse(event)["n"].number(10);
//           return nanogrid::json::object({{"n", nanogrid::json::text(n)}});
//       });
//   }
//
// The event is the caller's bytes, the result must be JSON text (or call ctx.content_type for anything
// else). An exception that leaves the handler is the invocation's failure.
#pragma once

#include <cxxabi.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <initializer_list>
#include <iostream>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

namespace nanogrid {

// Reading and writing JSON, as much of it as a small function needs.
namespace json {

struct error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A view of one value inside a JSON text; the text must outlive it. Lookups of what is absent give an
// absent value, so that chains such as v["a"]["b"].number(1) need no checks.
class value {
public:
    value() = default;
    explicit value(std::string_view raw) : raw_(raw) {}

    // The value's own JSON text; empty when absent.
    std::string_view raw() const { return raw_; }
    bool exists() const { return !raw_.empty(); }
    bool is_object() const { return first() == '{'; }
    bool is_array() const { return first() == '['; }
    bool is_string() const { return first() == '"'; }
    bool is_null() const { return first() == 'n'; }
    bool is_number() const { return first() == '-' || (first() >= '0' && first() <= '9'); }

    // The number, or `otherwise` when the value is absent or not a number.
    double number(double otherwise = 0) const {
        if (!is_number()) return otherwise;
        return std::strtod(std::string(raw_).c_str(), nullptr);
    }
    // The whole number, exact in 64 bits; a fraction is cut off, what does not fit gives `otherwise`.
    std::int64_t integer(std::int64_t otherwise = 0) const {
        if (!is_number()) return otherwise;
        std::int64_t out = 0;
        auto [end, code] = std::from_chars(raw_.data(), raw_.data() + raw_.size(), out);
        if (code == std::errc() && end == raw_.data() + raw_.size()) return out;
        double d = number();
        return d > -9.2e18 && d < 9.2e18 ? static_cast<std::int64_t>(d) : otherwise;
    }
    bool boolean(bool otherwise = false) const {
        return first() == 't' ? true : first() == 'f' ? false : otherwise;
    }
    // The string without quotes and escapes, or `otherwise` when the value is not a string.
    std::string string(std::string otherwise = {}) const;
    // The member `key` of an object.
    value operator[](std::string_view key) const;
    value operator[](const char* key) const { return (*this)[std::string_view(key)]; }
    // The elements of an array; empty for anything else.
    std::vector<value> items() const;
    // The members of an object in their order; empty for anything else.
    std::vector<std::pair<std::string, value>> members() const;

private:
    char first() const { return raw_.empty() ? '\0' : raw_.front(); }
    std::string_view raw_;
};

namespace detail {

// Checks a JSON text and finds where values end.
class scanner {
public:
    explicit scanner(std::string_view text) : text_(text) {}

    std::size_t at = 0;

    void space() {
        while (at < text_.size() && std::strchr(" \t\r\n", text_[at]) && text_[at]) ++at;
    }
    bool end() const { return at >= text_.size(); }
    char peek() const { return end() ? '\0' : text_[at]; }
    bool take(char c) {
        if (peek() != c || end()) return false;
        ++at;
        return true;
    }
    // Steps over one value and returns its text.
    std::string_view any(int depth = 0) {
        if (depth > 512) fail("nested deeper than 512 levels");
        std::size_t from = at;
        switch (peek()) {
            case '{': group('}', true, depth); break;
            case '[': group(']', false, depth); break;
            case '"': quoted(); break;
            case 't': word("true"); break;
            case 'f': word("false"); break;
            case 'n': word("null"); break;
            default: number();
        }
        return text_.substr(from, at - from);
    }
    std::string_view quoted() {
        std::size_t from = at;
        if (!take('"')) fail("expected a string");
        for (; !end(); ++at) {
            auto c = static_cast<unsigned char>(text_[at]);
            if (c == '"') return text_.substr(from, ++at - from);
            if (c < 0x20) fail("control character in a string");
            if (c == '\\') escape();
        }
        fail("string without an end");
    }
    [[noreturn]] void fail(const char* what) const {
        throw error("not JSON: " + std::string(what) + " at byte " + std::to_string(at));
    }

private:
    void group(char close, bool keyed, int depth) {
        ++at;
        space();
        if (take(close)) return;
        for (;;) {
            if (keyed) {
                quoted();
                space();
                if (!take(':')) fail("expected ':'");
                space();
            }
            any(depth + 1);
            space();
            if (take(close)) return;
            if (!take(',')) fail("expected ',' or the end of an object or array");
            space();
        }
    }
    void word(std::string_view expected) {
        if (text_.substr(at, expected.size()) != expected) fail("unknown word");
        at += expected.size();
    }
    bool digits() {
        std::size_t from = at;
        while (peek() >= '0' && peek() <= '9') ++at;
        return at > from;
    }
    void number() {
        take('-');
        if (peek() == '0') ++at;
        else if (!digits()) fail("expected a value");
        if (take('.') && !digits()) fail("expected digits");
        if (peek() == 'e' || peek() == 'E') {
            ++at;
            if (!take('+')) take('-');
            if (!digits()) fail("expected digits");
        }
    }
    void escape() {
        ++at;
        if (end() || !std::strchr("\"\\/bfnrtu", text_[at])) fail("unknown escape");
        if (text_[at] != 'u') return;
        for (int i = 0; i < 4; ++i)
            if (++at >= text_.size() || !std::isxdigit(static_cast<unsigned char>(text_[at]))) fail("bad \\u escape");
    }

    std::string_view text_;
};

inline void utf8(std::string& out, std::uint32_t c) {
    if (c < 0x80) {
        out += static_cast<char>(c);
    } else if (c < 0x800) {
        out += static_cast<char>(0xC0 | (c >> 6));
        out += static_cast<char>(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        out += static_cast<char>(0xE0 | (c >> 12));
        out += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
        out += static_cast<char>(0x80 | (c & 0x3F));
    } else {
        out += static_cast<char>(0xF0 | (c >> 18));
        out += static_cast<char>(0x80 | ((c >> 12) & 0x3F));
        out += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
        out += static_cast<char>(0x80 | (c & 0x3F));
    }
}

inline std::uint32_t hex4(std::string_view text, std::size_t at) {
    std::uint32_t out = 0;
    if (at + 4 <= text.size()) std::from_chars(text.data() + at, text.data() + at + 4, out, 16);
    return out;
}

// `raw` is a checked string with its quotes.
inline std::string unescape(std::string_view raw) {
    std::string out;
    out.reserve(raw.size());
    for (std::size_t i = 1; i + 1 < raw.size(); ++i) {
        if (raw[i] != '\\') {
            out += raw[i];
            continue;
        }
        switch (char c = raw[++i]) {
            case 'b': out += '\b'; break;
            case 'f': out += '\f'; break;
            case 'n': out += '\n'; break;
            case 'r': out += '\r'; break;
            case 't': out += '\t'; break;
            case 'u': {
                std::uint32_t code = hex4(raw, i + 1);
                i += 4;
                if (code >= 0xD800 && code < 0xDC00 && raw.substr(i + 1, 2) == "\\u") {
                    std::uint32_t low = hex4(raw, i + 3);
                    if (low >= 0xDC00 && low < 0xE000) {
                        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                        i += 6;
                    }
                }
                utf8(out, code >= 0xD800 && code < 0xE000 ? 0xFFFD : code);
                break;
            }
            default: out += c;
        }
    }
    return out;
}

// The length of a well-formed UTF-8 sequence at `at`, or 0.
inline std::size_t sequence(std::string_view s, std::size_t at) {
    auto byte = [&](std::size_t i) { return i < s.size() ? static_cast<unsigned char>(s[i]) : 0u; };
    auto tail = [&](std::size_t i) { return (byte(i) & 0xC0) == 0x80; };
    unsigned c = byte(at), next = byte(at + 1);
    if (c < 0x80) return 1;
    if (c >= 0xC2 && c < 0xE0) return tail(at + 1) ? 2 : 0;
    if (c >= 0xE0 && c < 0xF0) {
        if ((c == 0xE0 && next < 0xA0) || (c == 0xED && next > 0x9F)) return 0;
        return tail(at + 1) && tail(at + 2) ? 3 : 0;
    }
    if (c >= 0xF0 && c < 0xF5) {
        if ((c == 0xF0 && next < 0x90) || (c == 0xF4 && next > 0x8F)) return 0;
        return tail(at + 1) && tail(at + 2) && tail(at + 3) ? 4 : 0;
    }
    return 0;
}

}  // namespace detail

// Reads a JSON text; throws json::error that says what is wrong and where. No text at all is null.
inline value parse(std::string_view text) {
    detail::scanner s(text);
    s.space();
    if (s.end()) return value("null");
    std::string_view whole = s.any();
    s.space();
    if (!s.end()) s.fail("more text after the value");
    return value(whole);
}

inline std::string value::string(std::string otherwise) const {
    return is_string() ? detail::unescape(raw_) : otherwise;
}

inline std::vector<std::pair<std::string, value>> value::members() const {
    std::vector<std::pair<std::string, value>> out;
    if (!is_object()) return out;
    detail::scanner s(raw_);
    s.at = 1;
    s.space();
    while (s.peek() == '"') {
        std::string key = detail::unescape(s.quoted());
        s.space();
        s.take(':');
        s.space();
        out.emplace_back(std::move(key), value(s.any()));
        s.space();
        s.take(',');
        s.space();
    }
    return out;
}

inline std::vector<value> value::items() const {
    std::vector<value> out;
    if (!is_array()) return out;
    detail::scanner s(raw_);
    s.at = 1;
    s.space();
    while (!s.end() && s.peek() != ']') {
        out.emplace_back(s.any());
        s.space();
        s.take(',');
        s.space();
    }
    return out;
}

inline value value::operator[](std::string_view key) const {
    value found;
    for (auto& [name, member] : members())
        if (name == key) found = member;
    return found;
}

// JSON text of a string; bytes that are not UTF-8 become U+FFFD.
inline std::string text(std::string_view s) {
    std::string out = "\"";
    for (std::size_t i = 0; i < s.size();) {
        auto c = static_cast<unsigned char>(s[i]);
        std::size_t width = detail::sequence(s, i);
        if (c == '"' || c == '\\') {
            out += '\\';
            out += s[i];
        } else if (c < 0x20) {
            char escaped[8];
            std::snprintf(escaped, sizeof escaped, "\\u%04x", c);
            out += escaped;
        } else if (width) {
            out.append(s, i, width);
        } else {
            out += "\xEF\xBF\xBD";
        }
        i += width ? width : 1;
    }
    return out += '"';
}
inline std::string text(const char* s) { return text(std::string_view(s)); }
inline std::string text(const std::string& s) { return text(std::string_view(s)); }
inline std::string text(bool b) { return b ? "true" : "false"; }
inline std::string text(double d) {
    if (!std::isfinite(d)) return "null";
    char out[32];
    auto written = std::to_chars(out, out + sizeof out, d);
    return std::string(out, written.ptr);
}
template <class T, class = std::enable_if_t<std::is_integral_v<T> && !std::is_same_v<T, bool>>>
std::string text(T n) {
    return std::to_string(n);
}

// {"key": value, ...} of values that are JSON text already.
inline std::string object(std::initializer_list<std::pair<std::string_view, std::string>> members) {
    std::string out = "{";
    for (auto& [key, member] : members) {
        if (out.size() > 1) out += ',';
        out += text(key) + ':' + member;
    }
    return out += '}';
}

// [value, ...] of values that are JSON text already.
inline std::string array(const std::vector<std::string>& items) {
    std::string out = "[";
    for (auto& item : items) {
        if (out.size() > 1) out += ',';
        out += item;
    }
    return out += ']';
}

}  // namespace json

namespace detail {

enum kind : std::uint8_t { invoke = 2, loaded = 17, result = 19, failed = 20, progress = 21, partial = 22 };

constexpr std::size_t max_frame = std::size_t{1} << 30;

// The socket to the worker; sends may come from any thread.
class channel {
public:
    explicit channel(int fd) : fd_(fd) {}

    // False at the end of the stream.
    bool receive(std::uint8_t& kind, std::string& meta, std::string& payload) {
        unsigned char head[13];
        if (!exactly(reinterpret_cast<char*>(head), sizeof head)) return false;
        std::size_t size = number(head), meta_size = number(head + 9);
        if (size < 9 || size > max_frame || meta_size > size - 9) return false;
        kind = head[4];
        meta.resize(meta_size);
        payload.resize(size - 9 - meta_size);
        return exactly(meta.data(), meta.size()) && exactly(payload.data(), payload.size());
    }

    void send(kind k, std::string_view meta, std::string_view payload = {}) {
        std::size_t size = 9 + meta.size() + payload.size();
        if (size > max_frame) throw std::length_error("a frame may have at most 1 GiB");
        std::string frame;
        frame.reserve(size + 4);
        append(frame, size);
        frame += static_cast<char>(k);
        append(frame, 0);
        append(frame, meta.size());
        frame.append(meta).append(payload);
        std::lock_guard<std::mutex> hold(mutex_);
        for (std::size_t at = 0; at < frame.size();) {
            ssize_t sent = ::send(fd_, frame.data() + at, frame.size() - at, MSG_NOSIGNAL);
            if (sent < 0 && errno == EINTR) continue;
            if (sent < 0) std::_Exit(0);  // The worker is gone, and with it everyone who waits for us.
            at += static_cast<std::size_t>(sent);
        }
    }

private:
    static std::size_t number(const unsigned char* b) {
        return std::size_t{b[0]} << 24 | std::size_t{b[1]} << 16 | std::size_t{b[2]} << 8 | b[3];
    }
    static void append(std::string& out, std::size_t n) {
        for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(n >> shift & 0xFF);
    }
    bool exactly(char* to, std::size_t count) {
        while (count) {
            ssize_t got = ::recv(fd_, to, count, MSG_WAITALL);
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) return false;
            to += got;
            count -= static_cast<std::size_t>(got);
        }
        return true;
    }

    int fd_;
    std::mutex mutex_;
};

inline std::string type_of(const std::exception& e) {
    int status = 0;
    const char* name = typeid(e).name();
    std::unique_ptr<char, void (*)(void*)> readable(abi::__cxa_demangle(name, nullptr, nullptr, &status), std::free);
    return status == 0 && readable ? readable.get() : name;
}

inline std::string failure(std::string_view type, std::string_view message, const std::vector<std::string>& stack,
                           bool bad_result = false) {
    std::string out = "{\"type\":" + json::text(type) + ",\"message\":" + json::text(message) +
                      ",\"stack\":" + json::array(stack);
    return out + (bad_result ? ",\"class\":\"RESULT_INVALID\"}" : "}");
}

// What std::throw_with_nested wrapped, outermost first.
inline void causes(const std::exception& e, std::vector<std::string>& out) {
    try {
        std::rethrow_if_nested(e);
    } catch (const std::exception& inner) {
        out.push_back(json::text("caused by " + type_of(inner) + ": " + inner.what()));
        causes(inner, out);
    } catch (...) {
        out.push_back(json::text("caused by an exception that is not a std::exception"));
    }
}

}  // namespace detail

// The call that is being served.
class context {
public:
    std::string id;
    int attempt = 1;
    // Milliseconds since the epoch; 0 when the function has no time limit.
    std::int64_t deadline_ms = 0;
    // Content type of the event.
    std::string event_type = "application/json";
    std::string function;
    int version = 0;
    int memory_mb = 0;
    // Set it when the result is not JSON, such as "image/png".
    std::string content_type;

    // Milliseconds left, or INT64_MAX without a time limit.
    std::int64_t remaining_ms() const {
        if (deadline_ms == 0) return INT64_MAX;
        using namespace std::chrono;
        return deadline_ms - duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count();
    }
    // Reports how far the invocation is, as JSON text.
    void progress(std::string_view json_text) {
        std::string checked(json::parse(json_text).raw());
        channel_->send(detail::progress, "{\"progress\":" + checked + "}");
    }
    // Sends a piece of output to the caller before the handler returns.
    void emit(std::string_view chunk) { channel_->send(detail::partial, "{}", chunk); }

    explicit context(detail::channel* channel) : channel_(channel) {}

private:
    detail::channel* channel_;
};

using handler = std::function<std::string(std::string_view event, context& ctx)>;

namespace detail {

// Ends the program when the worker is gone, even while a handler is at work; sleeps until then.
inline void watch(int fd) {
    pollfd waiting{fd, 0x2000, 0};  // POLLRDHUP
    while (::poll(&waiting, 1, -1) < 0 && errno == EINTR) {
    }
    std::_Exit(0);
}

// The first process of a sandbox has no default action for SIGTERM; give it the usual one.
inline void obey_sigterm() {
    struct sigaction old {};
    if (::getpid() == 1 && ::sigaction(SIGTERM, nullptr, &old) == 0 && old.sa_handler == SIG_DFL)
        ::signal(SIGTERM, [](int) { ::_exit(128 + SIGTERM); });
}

// Serves one INVOKE; what the handler throws becomes an ERROR.
inline void serve(channel& to, const handler& handle, context& ctx, std::string_view event) {
    std::string result;
    std::string error;
    try {
        result = handle(event, ctx);
        if (ctx.content_type.empty()) {
            try {
                if (json::parse(result).raw() == "null") result = "null";
            } catch (const json::error& bad) {
                error = failure("ResultError", "the handler's result is " + std::string(bad.what()), {}, true);
            }
        }
    } catch (const std::exception& e) {
        std::vector<std::string> stack;
        causes(e, stack);
        error = failure(type_of(e), e.what(), stack);
    } catch (...) {
        const std::type_info* type = abi::__cxa_current_exception_type();
        error = failure(type ? type->name() : "unknown", "the handler threw what is not a std::exception", {});
    }
    std::cout.flush();
    std::cerr.flush();
    std::fflush(nullptr);
    if (!error.empty())
        to.send(failed, error);
    else if (ctx.content_type.empty())
        to.send(nanogrid::detail::result, "{}", result);
    else
        to.send(nanogrid::detail::result, "{\"type\":" + json::text(ctx.content_type) + "}", result);
}

}  // namespace detail

// Serves invocations with `handle` until the worker closes the connection; it never returns.
[[noreturn]] inline void start(handler handle) {
    auto began = std::chrono::steady_clock::now();
    const char* number = std::getenv("NANOGRID_FD");
    const char* described = std::getenv("NANOGRID_LOAD");
    if (!number || !described) {
        std::fputs("nanogrid: this program is a function and is started by a NanoGrid worker; "
                   "deploy it with: nanogrid deploy\n", stderr);
        std::exit(1);
    }
    int fd = std::atoi(number);
    std::string load_text = described;
    ::unsetenv("NANOGRID_FD");
    ::unsetenv("NANOGRID_LOAD");
    ::fcntl(fd, F_SETFD, FD_CLOEXEC);
    static detail::channel to(fd);
    json::value load = json::parse(load_text);
    std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - began;
    to.send(detail::loaded, "{\"init_ms\":" + json::text(took.count()) + "}");
    detail::obey_sigterm();
    std::thread(detail::watch, fd).detach();
    std::uint8_t kind = 0;
    std::string meta, event;
    while (to.receive(kind, meta, event)) {
        if (kind != detail::invoke) continue;
        json::value m = json::parse(meta);
        context ctx(&to);
        ctx.id = m["id"].string();
        ctx.attempt = static_cast<int>(m["attempt"].integer(1));
        ctx.deadline_ms = m["deadline_ms"].integer();
        ctx.event_type = m["type"].string("application/json");
        ctx.function = load["function"].string();
        ctx.version = static_cast<int>(load["version"].integer());
        ctx.memory_mb = static_cast<int>(load["memory_mb"].integer());
        detail::serve(to, handle, ctx, event);
    }
    std::fflush(nullptr);
    std::_Exit(0);
}

}  // namespace nanogrid
