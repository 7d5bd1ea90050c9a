// As much of an ONNX file as the doubles need: names, types and shapes of inputs and outputs, and the nodes.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace onnx {

struct Tensor {
    std::string name;
    int32_t type = 0; // TensorProto.DataType: 1 float, 10 half
    std::vector<int64_t> shape;
};

struct Node {
    std::string name, kind;
};

struct Model {
    std::vector<Tensor> inputs, outputs;
    std::vector<Node> nodes;
};

// One field of a protobuf message.
struct Field {
    uint32_t number = 0;
    uint64_t value = 0;    // of a varint
    std::string_view bytes; // of a length-delimited field
};

// Walks over a message; `bad` when it makes no sense.
class Reader {
  public:
    explicit Reader(std::string_view message) : rest(message) {}
    bool bad = false;

    bool next(Field& field) {
        if (rest.empty() || bad) return false;
        uint64_t const key = varint();
        field = Field{static_cast<uint32_t>(key >> 3), 0, {}};
        switch (key & 7) {
        case 0: field.value = varint(); break;
        case 1: take(8); break;
        case 2: field.bytes = take(varint()); break;
        case 5: take(4); break;
        default: bad = true;
        }
        return !bad;
    }

  private:
    std::string_view rest;

    uint64_t varint() {
        uint64_t value = 0;
        for (int shift = 0; shift < 64; shift += 7) {
            if (rest.empty()) break;
            uint8_t const byte = static_cast<uint8_t>(rest[0]);
            rest.remove_prefix(1);
            value |= static_cast<uint64_t>(byte & 127) << shift;
            if (byte < 128) return value;
        }
        bad = true;
        return 0;
    }

    std::string_view take(uint64_t size) {
        if (size > rest.size()) {
            bad = true;
            return {};
        }
        std::string_view const taken = rest.substr(0, size);
        rest.remove_prefix(size);
        return taken;
    }
};

// Calls `each` for every field of a message; false if it makes no sense or `each` says so.
template <typename F>
bool walk(std::string_view message, F each) {
    Reader reader(message);
    for (Field field; reader.next(field);)
        if (!each(field)) return false;
    return !reader.bad;
}

inline bool read_shape(std::string_view message, Tensor& tensor) {
    return walk(message, [&](Field const& dimension) {
        int64_t size = -1;
        bool const whole = walk(dimension.bytes, [&](Field const& f) {
            if (f.number == 1) size = static_cast<int64_t>(f.value);
            return true;
        });
        tensor.shape.push_back(size);
        return whole;
    });
}

inline bool read_tensor(std::string_view message, Tensor& tensor) {
    return walk(message, [&](Field const& f) {
        if (f.number == 1) tensor.name = f.bytes;
        if (f.number != 2) return true;
        return walk(f.bytes, [&](Field const& type) {
            return type.number != 1 || walk(type.bytes, [&](Field const& part) {
                if (part.number == 1) tensor.type = static_cast<int32_t>(part.value);
                return part.number != 2 || read_shape(part.bytes, tensor);
            });
        });
    });
}

inline bool read(std::string_view bytes, Model& model) {
    bool const whole = walk(bytes, [&](Field const& f) {
        return f.number != 7 || walk(f.bytes, [&](Field const& part) {
            if (part.number == 1) {
                Node node;
                bool const read = walk(part.bytes, [&](Field const& n) {
                    if (n.number == 3) node.name = n.bytes;
                    if (n.number == 4) node.kind = n.bytes;
                    return true;
                });
                model.nodes.push_back(node);
                return read;
            }
            if (part.number != 11 && part.number != 12) return true;
            auto& tensors = part.number == 11 ? model.inputs : model.outputs;
            tensors.emplace_back();
            return read_tensor(part.bytes, tensors.back());
        });
    });
    return whole && !model.inputs.empty() && !model.outputs.empty();
}

} // namespace onnx
