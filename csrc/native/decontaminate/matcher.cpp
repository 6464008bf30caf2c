#include "matcher.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>

namespace osim::decontaminate {
namespace {

constexpr std::uint64_t kMultiplier = 0x9E3779B97F4A7C15u;

std::uint64_t gram_hash(const std::uint64_t* token, std::size_t count) {
    std::uint64_t hash = count;
    for (std::size_t i = 0; i < count; ++i) {
        hash = (hash ^ token[i]) * kMultiplier;
        hash ^= hash >> 32;
    }
    return hash;
}

}  // namespace

Index::Index(std::span<const Text> texts, std::span<const std::int32_t> item_of, std::int32_t num_items, Simd simd)
    : item_of_(item_of.begin(), item_of.end()), lengths_(num_items, 0) {
    Tokeniser tokeniser(simd);
    for (std::size_t text = 0; text < texts.size(); ++text) {
        const auto tokens = tokeniser.tokens(texts[text]);
        const std::size_t begin = tokens_.size();
        tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
        if (tokens_.size() > UINT32_MAX) {
            throw std::invalid_argument("benchmark items hold more than 2^32 tokens");
        }
        text_ends_.push_back(static_cast<std::uint32_t>(tokens_.size()));
        lengths_[item_of[text]] += static_cast<std::int32_t>(tokens.size());
        if (tokens.size() >= kGram) {
            for (std::size_t at = begin; at + kGram <= tokens_.size(); ++at) {
                places_.push_back({gram_hash(&tokens_[at], kGram), static_cast<std::uint32_t>(at)});
            }
        } else if (!tokens.empty()) {
            short_.push_back({gram_hash(tokens.data(), tokens.size()), static_cast<std::uint32_t>(text)});
        }
    }
    const auto by_hash = [](const Place& a, const Place& b) {
        return a.hash != b.hash ? a.hash < b.hash : a.position < b.position;
    };
    std::sort(places_.begin(), places_.end(), by_hash);
    std::sort(short_.begin(), short_.end(), by_hash);

    const std::size_t count = places_.size();
    const int bits = std::max(1, static_cast<int>(std::bit_width(count)));
    bucket_shift_ = 64 - bits;
    starts_.assign((std::size_t{1} << bits) + 1, 0);
    for (const Place& place : places_) {
        ++starts_[(place.hash >> bucket_shift_) + 1];
    }
    for (std::size_t bucket = 1; bucket < starts_.size(); ++bucket) {
        starts_[bucket] += starts_[bucket - 1];
    }
    const std::size_t words = std::bit_ceil(std::max<std::size_t>(count * 16 / 64, 64));  // 16 bits a place
    filter_.assign(words, 0);
    filter_mask_ = words - 1;
    for (const Place& place : places_) {
        filter_[place.hash >> 6 & filter_mask_] |= std::uint64_t{1} << (place.hash & 63);
    }
}

std::span<const Index::Place> Index::places(std::uint64_t hash) const {
    const std::uint64_t bucket = hash >> bucket_shift_;
    const auto begin = places_.begin() + starts_[bucket];
    const auto end = places_.begin() + starts_[bucket + 1];
    const auto first = std::lower_bound(begin, end, hash, [](const Place& p, std::uint64_t h) { return p.hash < h; });
    const auto last = std::upper_bound(first, end, hash, [](std::uint64_t h, const Place& p) { return h < p.hash; });
    return {first, last};
}

void Searcher::find_runs(std::span<const Text> turns) {
    row_.clear();
    runs_.clear();
    active_.clear();
    for (const Text turn : turns) {
        const auto tokens = tokeniser_.tokens(turn);
        if (!tokens.empty() && tokens.size() < kGram) {
            match_whole_turn(tokens, row_.size());
        }
        row_.insert(row_.end(), tokens.begin(), tokens.end());
    }
    for (std::size_t at = 0; at + kGram <= row_.size(); ++at) {
        const std::uint64_t hash = gram_hash(&row_[at], kGram);
        if (!index_.maybe(hash)) {
            continue;
        }
        const auto places = index_.places(hash);
        if (static_cast<std::int64_t>(places.size()) > Index::kCommon) {
            continue;
        }
        std::erase_if(active_, [&](const Diagonal& d) { return d.row_end < at + kGram; });
        for (const auto& place : places) {
            extend(at, place.position);
        }
    }
    std::sort(runs_.begin(), runs_.end(), [&](const Run& a, const Run& b) {
        const std::int32_t item_a = index_.item_of_[a.text];
        const std::int32_t item_b = index_.item_of_[b.text];
        return item_a != item_b     ? item_a < item_b
               : a.begin != b.begin ? a.begin < b.begin
               : a.end != b.end     ? a.end < b.end
                                    : a.row_begin < b.row_begin;
    });
}

// Texts of the items below kGram tokens that this turn is.
void Searcher::match_whole_turn(std::span<const std::uint64_t> tokens, std::size_t row_begin) {
    const std::uint64_t hash = gram_hash(tokens.data(), tokens.size());
    auto place = std::lower_bound(index_.short_.begin(), index_.short_.end(), hash,
                                  [](const Index::Place& p, std::uint64_t h) { return p.hash < h; });
    for (; place != index_.short_.end() && place->hash == hash; ++place) {
        const std::uint32_t text = place->position;
        const std::uint32_t end = index_.text_ends_[text];
        const auto begin = end - static_cast<std::uint32_t>(tokens.size());
        const std::uint32_t text_begin = text == 0 ? 0 : index_.text_ends_[text - 1];
        if (begin == text_begin && std::equal(tokens.begin(), tokens.end(), index_.tokens_.begin() + begin)) {
            runs_.push_back({text, begin, end, row_begin});
        }
    }
}

void Searcher::search(std::int64_t row, std::span<const Text> turns, std::vector<Match>* matches) {
    find_runs(turns);
    // runs of one item: the longest, and how much of the item they cover together
    for (std::size_t i = 0; i < runs_.size();) {
        Match match{row, index_.item_of_[runs_[i].text], 0, 0};
        std::uint32_t covered_to = 0;
        for (; i < runs_.size() && index_.item_of_[runs_[i].text] == match.item; ++i) {
            const Run& run = runs_[i];
            match.longest = std::max(match.longest, static_cast<std::int32_t>(run.end - run.begin));
            match.covered += static_cast<std::int32_t>(run.end - std::min(std::max(run.begin, covered_to), run.end));
            covered_to = std::max(covered_to, run.end);
        }
        matches->push_back(match);
    }
}

void Searcher::locate(std::int64_t row, std::span<const Text> turns, std::vector<Span>* spans) {
    find_runs(turns);
    if (runs_.empty()) {
        return;
    }
    struct Place {
        std::int32_t turn;
        std::int64_t begin, end;
    };
    std::vector<Place> places;  // of each token of the row
    for (std::size_t turn = 0; turn < turns.size(); ++turn) {
        TokenScanner scanner(turns[turn].data(), turns[turn].size());
        for (std::uint64_t hash; scanner.next(&hash);) {
            places.push_back({static_cast<std::int32_t>(turn), static_cast<std::int64_t>(scanner.begin()),
                              static_cast<std::int64_t>(scanner.end())});
        }
    }
    for (const Run& run : runs_) {
        const std::size_t end = run.row_begin + (run.end - run.begin);
        for (std::size_t at = run.row_begin; at < end;) {
            const Place& first = places[at];
            while (at < end && places[at].turn == first.turn) {
                ++at;
            }
            spans->push_back({row, index_.item_of_[run.text], first.turn, first.begin, places[at - 1].end});
        }
    }
}

// The run of equal tokens through row_[at] and the index's `position`, unless it is known already.
void Searcher::extend(std::size_t at, std::uint32_t position) {
    const std::int64_t offset = static_cast<std::int64_t>(position) - static_cast<std::int64_t>(at);
    for (const Diagonal& diagonal : active_) {
        if (diagonal.offset == offset && diagonal.row_end >= at + kGram) {
            return;
        }
    }
    const auto& tokens = index_.tokens_;
    const auto text = static_cast<std::uint32_t>(
        std::upper_bound(index_.text_ends_.begin(), index_.text_ends_.end(), position) - index_.text_ends_.begin());
    const std::uint32_t text_begin = text == 0 ? 0 : index_.text_ends_[text - 1];
    const std::uint32_t text_end = index_.text_ends_[text];
    std::size_t row_begin = at;
    std::uint32_t begin = position;
    while (begin > text_begin && row_begin > 0 && tokens[begin - 1] == row_[row_begin - 1]) {
        --begin;
        --row_begin;
    }
    std::size_t row_end = at;
    std::uint32_t end = position;
    while (end < text_end && row_end < row_.size() && tokens[end] == row_[row_end]) {
        ++end;
        ++row_end;
    }
    if (end - begin >= kGram) {  // a collision of n-gram hashes would end here
        runs_.push_back({text, begin, end, row_begin});
        active_.push_back({offset, row_end});
    }
}

}  // namespace osim::decontaminate
