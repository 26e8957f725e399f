// Buffers, weights and the files they are loaded from.
#include <cstring>

#include "native/addon/handles.h"
#include "native/runtime/synthetic_file.h"

namespace nibblet {
namespace {

Format format(const Napi::Value& value) {
  std::string name = text(value, "format");
  if (name == "f32") return Format::f32;
  if (name == "bf16") return Format::bf16;
  if (name == "e4m3") return Format::e4m3;
  if (name == "nvfp4") return Format::nvfp4;
  throw invalid("unknown weight format '" + name + "'; expected f32, bf16, e4m3 or nvfp4");
}

Layout layout(const Napi::Value& value) {
  std::string name = text(value, "layout");
  if (name == "rows") return Layout::rows;
  if (name == "panels") return Layout::panels;
  if (name == "columns") return Layout::columns;
  if (name == "fragments") return Layout::fragments;
  throw invalid("unknown weight layout '" + name + "'; expected rows, panels, columns or fragments");
}

/// `[file, offset, dtype, name]`, or undefined
FileTensor file_tensor(const Napi::Value& value) {
  FileTensor result;
  if (value.IsUndefined()) return result;
  if (!value.IsArray()) throw invalid("expected a file tensor");
  Napi::Array array = value.As<Napi::Array>();
  result.file = unwrap<ByteSource>(array.Get(0u));
  result.offset = size(array.Get(1u), "offset");
  result.dtype = dtype(array.Get(2u));
  result.name = text(array.Get(3u), "name");
  return result;
}

Draw draw_of(const Napi::Value& value) {
  std::string name = text(value, "draw");
  if (name == "pairs") return Draw::pairs;
  if (name == "bytes") return Draw::bytes;
  if (name == "halves") return Draw::halves;
  if (name == "words") return Draw::words;
  throw invalid("unknown draw '" + name + "'; expected pairs, bytes, halves or words");
}

/// `(path, [[draw, alternate, entries], …], f64 [regions, 3] of offset, bytes and table, u64 [regions] of seeds)`
Napi::Value create_synthetic_file(const Napi::CallbackInfo& info) {
  if (!info[1].IsArray()) throw invalid("expected an array of tables");
  Napi::Array given = info[1].As<Napi::Array>();
  std::vector<SyntheticFile::Table> tables;
  for (uint32_t i = 0; i < given.Length(); ++i) {
    Napi::Value row = given.Get(i);
    if (!row.IsArray()) throw invalid("expected a table");
    Napi::Array table = row.As<Napi::Array>();
    auto [entries, count] = bytes(table.Get(2u), "entries");
    bool alternate = table.Get(1u).ToBoolean();
    tables.push_back({draw_of(table.Get(0u)), alternate, std::vector<uint8_t>(entries, entries + count)});
  }
  auto [places, place_bytes] = bytes(info[2], "regions");
  auto [seeds, seed_bytes] = bytes(info[3], "seeds");
  size_t count = seed_bytes / sizeof(uint64_t);
  if (place_bytes != count * 3 * sizeof(double)) throw invalid("regions and seeds do not go together");
  std::vector<SyntheticFile::Region> regions(count);
  for (size_t i = 0; i < count; ++i) {
    double place[3];
    std::memcpy(place, places + i * sizeof place, sizeof place);
    std::memcpy(&regions[i].seed, seeds + i * sizeof(uint64_t), sizeof(uint64_t));
    for (double value : place) {
      if (!(value >= 0 && value < 0x1p53)) throw invalid("a region is out of range");
    }
    regions[i].offset = static_cast<size_t>(place[0]);
    regions[i].bytes = static_cast<size_t>(place[1]);
    regions[i].table = static_cast<size_t>(place[2]);
  }
  return wrap<ByteSource>(info.Env(), std::make_shared<SyntheticFile>(text(info[0], "path"),
                                                                      std::move(tables), std::move(regions)));
}

template <class T>
Napi::Value dispose(const Napi::CallbackInfo& info) {
  slot_of<T>(info[0]).reset();
  return info.Env().Undefined();
}

Napi::Value create_weight(const Napi::CallbackInfo& info) {
  return wrap(info.Env(), std::make_shared<Weight>(unwrap<Device>(info[0]), format(info[1]), layout(info[2]),
                                                   integer(info[3], "matrices"), integer(info[4], "out"),
                                                   integer(info[5], "in")));
}

Napi::Value load_tensor_from(const Napi::CallbackInfo& info) {
  std::shared_ptr<Stream> stream = unwrap<Stream>(info[0]);
  Tensor to = tensor(info[1]);
  stream->require(*to.buffer, "the tensor to load");
  stream->enqueue(load_tensor(to, file_tensor(info[2])));
  return info.Env().Undefined();
}

WeightPart weight_part(const Napi::Value& value) {
  if (!value.IsObject()) throw invalid("expected a weight part");
  Napi::Object given = value.As<Napi::Object>();
  WeightPart part;
  part.matrix = integer(given.Get("matrix"), "matrix");
  part.first_row = integer(given.Get("firstRow"), "firstRow");
  part.rows = integer(given.Get("rows"), "rows");
  part.elements = file_tensor(given.Get("elements"));
  if (!part.elements) throw invalid("expected `elements` in a weight part");
  part.block_scales = file_tensor(given.Get("blockScales"));
  part.row_scales = file_tensor(given.Get("rowScales"));
  part.scale = static_cast<float>(number(given.Get("scale"), "scale"));
  part.input_scale = static_cast<float>(number(given.Get("inputScale"), "inputScale"));
  return part;
}

/// `(stream, weight, [part, …])`
Napi::Value load_weight_from(const Napi::CallbackInfo& info) {
  if (!info[2].IsArray()) throw invalid("expected an array of weight parts");
  Napi::Array given = info[2].As<Napi::Array>();
  std::vector<WeightPart> parts;
  parts.reserve(given.Length());
  for (uint32_t i = 0; i < given.Length(); ++i) {
    // The handles of a hundred parts are not to wait for the end of the call.
    Napi::HandleScope scope(info.Env());
    parts.push_back(weight_part(given.Get(i)));
  }
  std::shared_ptr<Stream> stream = unwrap<Stream>(info[0]);
  std::shared_ptr<Weight> weight = unwrap<Weight>(info[1]);
  stream->require(*weight->buffer(), "the weight to load");
  stream->enqueue(load_weight(std::move(weight), std::move(parts)));
  return info.Env().Undefined();
}

Napi::Value compact_weight_of(const Napi::CallbackInfo& info) {
  std::shared_ptr<Stream> stream = unwrap<Stream>(info[0]);
  std::shared_ptr<Weight> weight = unwrap<Weight>(info[1]);
  stream->require(*weight->buffer(), "the weight to make compact");
  stream->enqueue(compact_weight(std::move(weight)));
  return info.Env().Undefined();
}

Napi::Value weight_storage(const Napi::CallbackInfo& info) {
  std::shared_ptr<Weight> weight = unwrap<Weight>(info[0]);
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("bytes", static_cast<double>(weight->buffer()->bytes()));
  result.Set("compact", weight->view().format == Format::compact_bf16);
  result.Set("exceptions", static_cast<double>(weight->exceptions()));
  return result;
}

}  // namespace

void export_memory(Napi::Env env, Napi::Object exports) {
  export_function(env, exports, "createBuffer", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return wrap(info.Env(), std::make_shared<Buffer>(unwrap<Device>(info[0]), size(info[1], "bytes")));
  });
  export_function(env, exports, "disposeBuffer", dispose<Buffer>);
  export_function(env, exports, "createWeight", create_weight);
  export_function(env, exports, "weightStorage", weight_storage);
  export_function(env, exports, "disposeWeight", dispose<Weight>);
  export_function(env, exports, "mapFile", [](const Napi::CallbackInfo& info) -> Napi::Value {
    return wrap<ByteSource>(info.Env(), std::make_shared<MappedFile>(text(info[0], "path")));
  });
  export_function(env, exports, "createSyntheticFile", create_synthetic_file);
  export_function(env, exports, "disposeFile", dispose<ByteSource>);
  export_function(env, exports, "loadTensor", load_tensor_from);
  export_function(env, exports, "loadWeight", load_weight_from);
  export_function(env, exports, "compactWeight", compact_weight_of);
}

}  // namespace nibblet
