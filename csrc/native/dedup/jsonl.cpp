#include "jsonl.hpp"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "text.hpp"

namespace osim::dedup {
namespace {

constexpr int kDeepest = 256;
constexpr std::uint64_t kOnes = 0x0101010101010101u;
constexpr std::uint64_t kHighs = 0x8080808080808080u;

// High bit of each byte that is zero (and, above the first such byte, maybe of others).
constexpr std::uint64_t zero_bytes(std::uint64_t x) { return (x - kOnes) & ~x & kHighs; }

class Parser {
  public:
    explicit Parser(Bytes line) : text_(line) {}

    struct String {
        std::size_t begin, end;
        bool escaped;
    };

    void blanks() {
        while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\r' ||
                                      text_[at_] == '\n')) {
            ++at_;
        }
    }

    bool take(char c) {
        if (at_ < text_.size() && text_[at_] == static_cast<std::uint8_t>(c)) {
            ++at_;
            return true;
        }
        return false;
    }

    int peek() const { return at_ < text_.size() ? text_[at_] : -1; }
    bool at_end() const { return at_ == text_.size(); }

    bool string(String* found) {
        if (!take('"')) {
            return false;
        }
        found->begin = at_;
        found->escaped = false;
        for (;;) {
            skip_plain();
            if (at_ >= text_.size()) {
                return false;
            }
            const std::uint8_t c = text_[at_];
            if (c == '"') {
                found->end = at_++;
                return true;
            }
            if (c < 0x20) {
                return false;
            }
            if (c == '\\') {
                found->escaped = true;
                if (!escape()) {
                    return false;
                }
            } else {
                ++at_;
            }
        }
    }

    // Any value; false if it is malformed.
    bool value(int depth = 0) {
        String ignored{};
        switch (peek()) {
            case '"':
                return string(&ignored);
            case '{':
                return depth < kDeepest && object([&](const String&) { return value(depth + 1); });
            case '[':
                return depth < kDeepest && array([&] { return value(depth + 1); });
            case 't':
                return word("true");
            case 'f':
                return word("false");
            case 'n':
                return word("null");
            default:
                return number();
        }
    }

    // The object here; member(key) consumes each value and says whether it is well-formed.
    template <typename Member>
    bool object(Member member) {
        return collection('{', '}', [&] {
            String key{};
            if (!string(&key)) {
                return false;
            }
            blanks();
            if (!take(':')) {
                return false;
            }
            blanks();
            return member(key);
        });
    }

    template <typename Element>
    bool array(Element element) {
        return collection('[', ']', element);
    }

  private:
    template <typename Entry>
    bool collection(char open, char close, Entry entry) {
        if (!take(open)) {
            return false;
        }
        blanks();
        if (take(close)) {
            return true;
        }
        for (;;) {
            blanks();
            if (!entry()) {
                return false;
            }
            blanks();
            if (take(close)) {
                return true;
            }
            if (!take(',')) {
                return false;
            }
        }
    }

    // Eight bytes at a time past everything that is no quote, backslash or control character.
    void skip_plain() {
        while (at_ + 8 <= text_.size()) {
            std::uint64_t bytes;
            std::memcpy(&bytes, text_.data() + at_, 8);
            const std::uint64_t special = zero_bytes(bytes ^ kOnes * '"') | zero_bytes(bytes ^ kOnes * '\\') |
                                          ((bytes - kOnes * 0x20) & ~bytes & kHighs);
            if (special != 0) {
                at_ += static_cast<std::size_t>(__builtin_ctzll(special)) / 8;
                return;
            }
            at_ += 8;
        }
        while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' && text_[at_] >= 0x20) {
            ++at_;
        }
    }

    bool escape() {
        if (at_ + 1 >= text_.size()) {
            return false;
        }
        const char kind = static_cast<char>(text_[at_ + 1]);
        at_ += 2;
        if (kind != 'u') {
            return std::strchr("\"\\/bfnrt", kind) != nullptr && kind != '\0';
        }
        for (int i = 0; i < 4; ++i, ++at_) {
            if (at_ >= text_.size() ||
                !(between(text_[at_], '0', '9') || between(text_[at_] | 0x20u, 'a', 'f'))) {
                return false;
            }
        }
        return true;
    }

    bool word(const char* expected) {
        const std::size_t length = std::strlen(expected);
        if (text_.size() - at_ < length || std::memcmp(text_.data() + at_, expected, length) != 0) {
            return false;
        }
        at_ += length;
        return true;
    }

    bool digits() {
        const std::size_t start = at_;
        while (between(static_cast<std::uint32_t>(peek()), '0', '9')) {
            ++at_;
        }
        return at_ > start;
    }

    bool number() {
        take('-');
        if (!take('0') && !digits()) {
            return false;
        }
        if (take('.') && !digits()) {
            return false;
        }
        if (take('e') || take('E')) {
            take('+') || take('-');
            return digits();
        }
        return true;
    }

    Bytes text_;
    std::size_t at_ = 0;
};

std::uint32_t hex4(const std::uint8_t* digits) {
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i) {
        const std::uint32_t c = digits[i];
        value = value << 4 | (between(c, '0', '9') ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return value;
}

bool same_string(Bytes line, const Parser::String& string, Bytes expected) {
    const auto raw = line.subspan(string.begin, string.end - string.begin);
    if (!string.escaped) {
        return std::ranges::equal(raw, expected);
    }
    std::vector<std::uint8_t> decoded;
    unescape(raw, decoded);
    return std::ranges::equal(decoded, expected);
}

Bytes bytes_of(std::string_view text) { return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}; }

// Consumes the value here, which should be a string; false if it is malformed.
bool take_string(Parser& parser, Located* found) {
    const int first = parser.peek();
    if (first != '"') {
        found->error = first == 'n' ? RowError::kNull : RowError::kNotString;
        return parser.value();
    }
    Parser::String text{};
    if (!parser.string(&text)) {
        return false;
    }
    *found = {RowError::kNone, text.begin, text.end};
    return true;
}

// Walks the members of the one object that a line has to be.
template <typename Member>
RowError walk(Bytes line, Parser& parser, Member member) {
    if (!is_utf8(line)) {
        return RowError::kInvalidUtf8;
    }
    parser.blanks();
    const bool is_object = parser.peek() == '{';
    bool valid = is_object ? parser.object(member) : parser.value();
    parser.blanks();
    valid = valid && parser.at_end();
    return !valid ? RowError::kInvalidJson : is_object ? RowError::kNone : RowError::kNotAnObject;
}

// Consumes one entry of `messages`.
bool take_message(Bytes line, Parser& parser, Message* message) {
    static const Bytes kContent = bytes_of("content");
    static const Bytes kRole = bytes_of("role");
    static const Bytes kSystem = bytes_of("system");
    message->content.error = RowError::kMissing;
    if (parser.peek() != '{') {
        return parser.value();
    }
    return parser.object([&](const Parser::String& key) {
        if (same_string(line, key, kContent)) {
            return take_string(parser, &message->content);
        }
        if (parser.peek() == '"' && same_string(line, key, kRole)) {
            Parser::String role{};
            if (!parser.string(&role)) {
                return false;
            }
            message->system = same_string(line, role, kSystem);
            return true;
        }
        return parser.value();
    });
}

}  // namespace

bool is_utf8(Bytes bytes) {
    std::size_t at = 0;
    while (at < bytes.size()) {
        if (at + 8 <= bytes.size()) {
            std::uint64_t word;
            std::memcpy(&word, bytes.data() + at, 8);
            if ((word & kHighs) == 0) {
                at += 8;
                continue;
            }
        }
        const CodePoint point = decode_utf8(bytes.data(), at, bytes.size());
        if (point.value == kMalformed) {
            return false;
        }
        at += point.bytes;
    }
    return true;
}

void locate(Bytes line, std::span<const Bytes> fields, std::span<Located> found) {
    std::ranges::fill(found, Located{.error = RowError::kMissing});
    Parser parser(line);
    const RowError error = walk(line, parser, [&](const Parser::String& key) {
        for (std::size_t i = 0; i < fields.size(); ++i) {
            if (same_string(line, key, fields[i])) {
                return take_string(parser, &found[i]);
            }
        }
        return parser.value();
    });
    if (error != RowError::kNone) {
        std::ranges::fill(found, Located{.error = error});
    }
}

RowError locate_messages(Bytes line, std::vector<Message>& messages) {
    static const Bytes kMessages = bytes_of("messages");
    const std::size_t before = messages.size();
    Parser parser(line);
    RowError error = walk(line, parser, [&](const Parser::String& key) {
        if (parser.peek() != '[' || !same_string(line, key, kMessages)) {
            return parser.value();
        }
        messages.resize(before);  // the last member of the name counts, as in `locate`
        return parser.array([&] { return take_message(line, parser, &messages.emplace_back()); });
    });
    if (error == RowError::kNone && messages.size() == before) {
        error = RowError::kNoMessages;
    }
    const auto bad = [](const Message& message) { return message.content.error != RowError::kNone; };
    if (error == RowError::kNone && std::ranges::any_of(std::span(messages).subspan(before), bad)) {
        error = RowError::kBadMessage;
    }
    if (error != RowError::kNone) {
        messages.resize(before);
    }
    return error;
}

void unescape(Bytes raw, std::vector<std::uint8_t>& out) {
    constexpr std::uint32_t kReplacement = 0xFFFD;
    for (std::size_t at = 0; at < raw.size();) {
        const auto* next = static_cast<const std::uint8_t*>(std::memchr(raw.data() + at, '\\', raw.size() - at));
        const std::size_t plain = next == nullptr ? raw.size() : static_cast<std::size_t>(next - raw.data());
        out.insert(out.end(), raw.begin() + static_cast<std::ptrdiff_t>(at),
                   raw.begin() + static_cast<std::ptrdiff_t>(plain));
        if (plain == raw.size()) {
            return;
        }
        const char kind = static_cast<char>(raw[plain + 1]);
        at = plain + 2;
        if (kind != 'u') {
            const char* names = "bfnrt";
            const char* name = std::strchr(names, kind);
            out.push_back(name == nullptr ? static_cast<std::uint8_t>(kind)
                                          : static_cast<std::uint8_t>("\b\f\n\r\t"[name - names]));
            continue;
        }
        std::uint32_t point = hex4(raw.data() + at);
        at += 4;
        if (between(point, 0xD800, 0xDBFF) && at + 6 <= raw.size() && raw[at] == '\\' && raw[at + 1] == 'u' &&
            between(hex4(raw.data() + at + 2), 0xDC00, 0xDFFF)) {
            point = 0x10000 + (point - 0xD800) * 0x400 + (hex4(raw.data() + at + 2) - 0xDC00);
            at += 6;
        } else if (between(point, 0xD800, 0xDFFF)) {
            point = kReplacement;
        }
        const std::uint32_t bytes = point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
        std::uint8_t encoded[4];
        if (bytes == 1) {
            encoded[0] = static_cast<std::uint8_t>(point);
        } else {
            encode_utf8(point, bytes, encoded);
        }
        out.insert(out.end(), encoded, encoded + bytes);
    }
}

}  // namespace osim::dedup
