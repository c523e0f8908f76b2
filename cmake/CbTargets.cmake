# The project's targets: one static library a folder, tests, fuzzers; flags; the dependency table.
include_guard(GLOBAL)

# Which folder may use which (the README and docs/architecture.md say why). cb_library() stops on any other
# edge, and since a folder's headers are only reachable through its target, the compiler does too.
set(CB_MAY_USE_support "")
set(CB_MAY_USE_schemas support)
set(CB_MAY_USE_layers layers_store schemas support)
set(CB_MAY_USE_queue schemas support)
set(CB_MAY_USE_builder builder_sweep layers schemas support)
set(CB_MAY_USE_server queue layers schemas support)
set(CB_MAY_USE_cli queue builder_sweep layers_store schemas support)
set(CB_MAY_USE_cli_job cli server queue builder layers schemas support)
# Parts of a folder that are libraries of their own, for those who must not link the rest of it: store look-ups
# without the parsers of images, and the removal of what dead builders left.
set(CB_MAY_USE_layers_store schemas support)
set(CB_MAY_USE_builder_sweep schemas support)

add_library(cb_flags INTERFACE)
target_compile_definitions(cb_flags INTERFACE _GNU_SOURCE _FILE_OFFSET_BITS=64)
target_compile_options(cb_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wformat=2 -Wundef -Wvla
  -Wcast-qual -Wstrict-prototypes -Wmissing-prototypes -Wwrite-strings -Wimplicit-fallthrough
  -Wnull-dereference -Werror -fno-common -fstack-protector-strong)
if(CMAKE_C_COMPILER_ID STREQUAL "Clang")
  target_compile_options(cb_flags INTERFACE -Wno-gnu-zero-variadic-macro-arguments)
endif()
if(CB_SANITIZE OR CB_FUZZ) # asserts are part of what these builds check, whatever the build type
  target_compile_options(cb_flags INTERFACE -UNDEBUG)
endif()
if(CB_SANITIZE)
  target_compile_options(cb_flags INTERFACE -fsanitize=address,undefined
    -fno-sanitize-recover=all -fno-omit-frame-pointer -Wno-null-dereference)
  target_link_options(cb_flags INTERFACE -fsanitize=address,undefined)
elseif(NOT CB_FUZZ)
  target_compile_definitions(cb_flags INTERFACE $<$<NOT:$<CONFIG:Debug>>:_FORTIFY_SOURCE=2>)
  target_link_options(cb_flags INTERFACE -Wl,-z,relro,-z,now)
endif()
if(CB_FUZZ)
  target_compile_options(cb_flags INTERFACE -fsanitize=fuzzer-no-link,address,undefined
    -fno-sanitize-recover=all -fno-omit-frame-pointer -Wno-null-dereference)
  target_link_options(cb_flags INTERFACE -fsanitize=address,undefined)
endif()
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

# cb_library(NAME [FOLDER folder] SOURCES file... [USES library...] [LINK target...])
# Headers of folder X are included as "X/file.h": the include path is a folder of links made for each
# folder under build/include/X, so that only folders named in USES can be included at all.
function(cb_library name)
  cmake_parse_arguments(A "" "FOLDER" "SOURCES;USES;LINK" ${ARGN})
  if(NOT A_FOLDER)
    set(A_FOLDER ${name})
  endif()
  foreach(u IN LISTS A_USES)
    if(NOT u IN_LIST CB_MAY_USE_${name})
      message(FATAL_ERROR "${name} may not use ${u} (cmake/CbTargets.cmake)")
    endif()
  endforeach()
  set(view ${CMAKE_BINARY_DIR}/include/${A_FOLDER})
  file(MAKE_DIRECTORY ${view})
  file(CREATE_LINK ${CMAKE_SOURCE_DIR}/${A_FOLDER} ${view}/${A_FOLDER} SYMBOLIC)
  if(NOT A_SOURCES) # headers alone, while a folder is being started
    add_library(${name} INTERFACE)
    target_include_directories(${name} INTERFACE ${view})
    target_link_libraries(${name} INTERFACE cb_flags ${A_USES})
    return()
  endif()
  add_library(${name} STATIC ${A_SOURCES})
  target_include_directories(${name} PUBLIC ${view})
  target_link_libraries(${name} PUBLIC cb_flags ${A_USES} PRIVATE ${A_LINK})
endfunction()

# cb_test(FOLDER MODULE [SOURCES extra...] [LINK target...] [LABELS label...]):
# tests/FOLDER/test_MODULE.c becomes the ctest "unit/FOLDER/MODULE". It may use every folder up to FOLDER.
function(cb_test folder module)
  cmake_parse_arguments(A "" "TIMEOUT" "SOURCES;LINK;LABELS" ${ARGN})
  set(t test_${folder}_${module})
  add_executable(${t} ${CMAKE_SOURCE_DIR}/tests/${folder}/test_${module}.c ${A_SOURCES})
  target_include_directories(${t} PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_compile_definitions(${t} PRIVATE CB_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
    CB_BINARY_DIR="${CMAKE_BINARY_DIR}")
  target_link_libraries(${t} PRIVATE ${folder} PkgConfig::CMOCKA ${A_LINK})
  add_test(NAME unit/${folder}/${module} COMMAND ${t})
  set_tests_properties(unit/${folder}/${module} PROPERTIES LABELS "unit;${A_LABELS}"
    SKIP_RETURN_CODE 77 TIMEOUT 120)
  if(A_TIMEOUT)
    set_tests_properties(unit/${folder}/${module} PROPERTIES TIMEOUT ${A_TIMEOUT})
  endif()
endfunction()

# cb_fuzz(NAME USES folder... [LINK target...]): tests/fuzz/fuzz_NAME.c with LLVMFuzzerTestOneInput.
# With CB_FUZZ it links libFuzzer; always it also builds with a driver that replays tests/fuzz/corpus/NAME.
function(cb_fuzz name)
  cmake_parse_arguments(A "" "" "USES;LINK" ${ARGN})
  if(CB_FUZZ)
    add_executable(fuzz_${name} ${CMAKE_SOURCE_DIR}/tests/fuzz/fuzz_${name}.c)
    target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
    target_link_libraries(fuzz_${name} PRIVATE ${A_USES} ${A_LINK})
    # Those of schemas/ also search for a few seconds in every ./dev test. They compile quickly, for they need little.
    if(A_USES STREQUAL "schemas")
      set(found ${CMAKE_BINARY_DIR}/fuzzing/${name})
      set(search "rm -rf ${found} && mkdir -p ${found} && exec $<TARGET_FILE:fuzz_${name}> -max_total_time=3 -seed=1")
      string(APPEND search " -timeout=60 -rss_limit_mb=2048 -artifact_prefix=${found}- ${found}")
      add_test(NAME fuzzing/${name} COMMAND sh -c "${search} ${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${name}")
      set_tests_properties(fuzzing/${name} PROPERTIES LABELS fuzzing TIMEOUT 300)
      if(NOT TARGET fuzzing)
        add_custom_target(fuzzing)
      endif()
      add_dependencies(fuzzing fuzz_${name})
    endif()
  endif()
  add_executable(replay_${name} ${CMAKE_SOURCE_DIR}/tests/fuzz/fuzz_${name}.c
    ${CMAKE_SOURCE_DIR}/tests/fuzz/replay_main.c)
  target_link_libraries(replay_${name} PRIVATE ${A_USES} ${A_LINK})
  add_test(NAME fuzz/${name} COMMAND replay_${name} ${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${name})
  set_tests_properties(fuzz/${name} PROPERTIES LABELS fuzz TIMEOUT 120)
endfunction()
