# cmake -DROOT= -DLIST= -DVERSION= -DOUT= -P BuildId.cmake: writes a header with CB_VERSION and CB_BUILD_ID, the
# version and a digest of the files that LIST names: the same sources give the same id wherever they are built.
file(STRINGS ${LIST} files)
set(all "")
foreach(f IN LISTS files)
  file(SHA256 ${ROOT}/${f} digest)
  string(APPEND all "${digest}  ${f}\n")
endforeach()
string(SHA256 id "${all}")
string(SUBSTRING ${id} 0 12 id)
file(WRITE ${OUT} "#define CB_VERSION \"${VERSION}\"\n#define CB_BUILD_ID CB_VERSION \"-${id}\"\n")
