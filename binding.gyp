{
  # The CPU-only build for machines without CMake (tools/setup.mjs runs it through npm's node-gyp).
  # It reads the same source list as CMakeLists.txt; flags must match the ones there.
  "targets": [
    {
      "target_name": "nibblet",
      "sources": [
        "<!@(node -p \"const s = require('./sources.json'); [...s.kernels, ...s.runtime, ...s.addon].join(' ')\")"
      ],
      "include_dirs": [
        ".",
        "<!(node -p \"require('node-addon-api').include_dir\")"
      ],
      "defines": [
        "NDEBUG",
        "NAPI_VERSION=9",
        "NAPI_CPP_EXCEPTIONS",
        "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS",
        "NIBBLET_VERSION=\"<!(node -p \"require('./package.json').version\")\""
      ],
      "cflags": ["-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-ffp-contract=off", "-fno-math-errno", "-pthread"],
      "cflags!": ["-fno-exceptions"],
      "cflags_cc": ["-std=c++20", "-fvisibility-inlines-hidden"],
      "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++17"],
      "ldflags": ["-pthread"],
      "xcode_settings": {
        "GCC_ENABLE_CPP_EXCEPTIONS": "YES",
        "GCC_ENABLE_CPP_RTTI": "YES",
        "GCC_SYMBOLS_PRIVATE_EXTERN": "YES",
        "CLANG_CXX_LANGUAGE_STANDARD": "c++20",
        "GCC_OPTIMIZATION_LEVEL": "3",
        "MACOSX_DEPLOYMENT_TARGET": "12.0",
        "OTHER_CFLAGS": ["-ffp-contract=off", "-fno-math-errno"]
      }
    }
  ]
}
