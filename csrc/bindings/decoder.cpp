// The forward of a whole decoder.
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include "bindings/module.h"
#include "cpu/decoder_forward.h"

namespace py = pybind11;

namespace fastpower {
namespace {

float* floats(const py::object& address) {
  return address.is_none() ? nullptr : pointer<float>(address.cast<uintptr_t>());
}

}  // namespace

void bind_decoder_forward(py::module_& m) {
  // (bfloat16, in, out, panels, bias) as fastpower.kernels.linear packed it; quantised: its type in GGUF
  // files instead of bfloat16
  using LinearArguments = std::tuple<py::object, int64_t, int64_t, uintptr_t, uintptr_t>;
  const auto packed = [](const py::handle& object) {
    const auto [kind, in, out, panels, bias] = object.cast<LinearArguments>();
    if (py::isinstance<py::bool_>(kind)) return linear_of(kind.cast<bool>(), in, out, panels, bias);
    return quantised_of(kind.cast<int64_t>(), in, out, panels, bias);
  };
  const auto packed_list = [packed](const py::handle& object) {  // one, or a list
    std::vector<Linear> parts;
    if (!py::isinstance<py::list>(object)) return std::vector<Linear>{packed(object)};
    for (const py::handle& part : object) parts.push_back(packed(part));
    return parts;
  };
  py::class_<DecoderForward>(m, "DecoderForward",
                             "The forward of a Llama-shaped decoder; pointers are not owned.")
      .def(py::init([packed, packed_list](const py::dict& d, const py::list& layers) {
             DecoderModel model{};
             model.dtype = d["bfloat16"].cast<bool>() ? Dtype::bfloat16 : Dtype::float32;
             model.hidden = d["hidden"].cast<int64_t>();
             model.q_heads = d["q_heads"].cast<int64_t>();
             model.kv_heads = d["kv_heads"].cast<int64_t>();
             model.head_dim = d["head_dim"].cast<int64_t>();
             model.intermediate = d["intermediate"].cast<int64_t>();
             model.vocab = d["vocab"].cast<int64_t>();
             model.eps = d["eps"].cast<float>();
             model.scale = d["scale"].cast<float>();
             model.softcap = d["softcap"].cast<float>();
             model.embedding_scale = d["embedding_scale"].cast<float>();
             model.activation = d["gelu"].cast<bool>() ? Activation::gelu_tanh : Activation::silu;
             model.quantised = d.contains("quantised") && d["quantised"].cast<bool>();
             model.embedding_dtype = model.quantised ? Dtype::float32 : model.dtype;
             if (py::isinstance<py::tuple>(d["embedding"]))
               model.embedding_panels = packed(d["embedding"]);
             else
               model.embedding = pointer<const void>(d["embedding"].cast<uintptr_t>());
             model.final_norm = floats(d["final_norm"]);
             model.head = packed(d["head"]);
             model.ropes.resize(d["ropes"].cast<size_t>());
             for (const py::handle& item : layers) {
               const py::dict l = py::cast<py::dict>(item);
               model.layers.push_back({packed_list(l["qkv"]), packed(l["out"]), packed(l["gate"]),
                                       packed(l["up"]), packed(l["down"]), floats(l["input_norm"]),
                                       floats(l["attention_norm"]), floats(l["mlp_norm"]),
                                       floats(l["output_norm"]), floats(l["q_norm"]), floats(l["k_norm"]),
                                       l["rope"].cast<int64_t>(), l["window"].cast<int64_t>()});
             }
             return std::make_unique<DecoderForward>(std::move(model));
           }),
           py::arg("model"), py::arg("layers"))
      .def("set_rope",
           [](DecoderForward& self, int64_t index, uintptr_t cos, uintptr_t sin, int64_t positions) {
             self.set_rope(index, {pointer<const float>(cos), pointer<const float>(sin), positions});
           })
      .def(
          "run",
          [](DecoderForward& self, uintptr_t ids, uintptr_t positions, uintptr_t slots, int64_t tokens,
             uintptr_t keep, int64_t kept, uintptr_t page_table, int64_t sequences, int64_t max_pages,
             uintptr_t query_starts, uintptr_t lengths, uintptr_t shared_starts, uintptr_t shared_pages,
             int64_t groups, uintptr_t k_cache, uintptr_t v_cache, int64_t layer_stride, int64_t page_stride,
             int64_t num_pages, int64_t page_size, uintptr_t logits) {
            DecoderBatch batch{};
            batch.tokens = tokens;
            batch.sequences = sequences;
            batch.max_pages = max_pages;
            batch.kept = kept;
            batch.ids = pointer<const int64_t>(ids);
            batch.positions = pointer<const int64_t>(positions);
            batch.slots = pointer<const int64_t>(slots);
            batch.keep = pointer<const int64_t>(keep);
            batch.page_table = pointer<const int32_t>(page_table);
            batch.query_starts = pointer<const int32_t>(query_starts);
            batch.lengths = pointer<const int32_t>(lengths);
            batch.shared_starts = pointer<const int32_t>(shared_starts);
            batch.shared_pages = pointer<const int32_t>(shared_pages);
            batch.groups = groups;
            batch.k_cache = pointer<void>(k_cache);
            batch.v_cache = pointer<void>(v_cache);
            batch.layer_stride = layer_stride;
            batch.page_stride = page_stride;
            batch.num_pages = num_pages;
            batch.page_size = page_size;
            batch.logits = pointer<float>(logits);
            py::gil_scoped_release release;
            self.run(batch);
          },
          py::kw_only(), py::arg("ids"), py::arg("positions"), py::arg("slots"), py::arg("tokens"),
          py::arg("keep"), py::arg("kept"), py::arg("page_table"), py::arg("sequences"), py::arg("max_pages"),
          py::arg("query_starts"), py::arg("lengths"), py::arg("shared_starts"), py::arg("shared_pages"),
          py::arg("groups"), py::arg("k_cache"), py::arg("v_cache"), py::arg("layer_stride"),
          py::arg("page_stride"), py::arg("num_pages"), py::arg("page_size"), py::arg("logits"))
      .def("times", [](const DecoderForward& self) {
        const DecoderTimes t = self.times();
        return std::map<std::string, double>{{"qkv", t.qkv}, {"append", t.append}, {"attention", t.attention},
                                             {"out", t.out}, {"mlp", t.mlp},       {"head", t.head}};
      });
}

}  // namespace fastpower
