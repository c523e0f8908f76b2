/* layer_places: where the bytes of a layer's files lie in a file of the store.
 *
 * The first image that a layer is inflated into holds its bytes: no second copy is written. What a
 * later layer of the same image deletes or replaces is saved into a file of its own
 * (layers/HEX.rest) before it becomes a hole, but no more than a twentieth of the image: the rest
 * is lost, which does not matter where a later layer takes it away again. The record
 * (layers/HEX.places) maps every data block of the layer, in the order of its index, to a block of
 * one of the two. It is good for as long as both are the files that they were; a layer whose record
 * is not is inflated again. */
#pragma once

#include "layers/prefix.h"
#include "layers/store.h"

struct writer;
struct extents;

/* ---- while an image is made ---- */

struct places; /* opaque */
/* @s is borrowed until places_free(). */
struct places *places_new(struct store *s);
void places_free(struct places *p); /* NULL is fine */
void places_done(struct places **p);
#define CB_AUTO_PLACES __attribute__((cleanup(places_done))) struct places *
/* From now on files are of this layer (@w calls back when it frees blocks); until its end. */
void places_begin(struct places *p, struct writer *w, const struct cb_digest *diff_id);
void places_add(struct places *p, const struct extents *blocks);
void places_end(struct places *p);
/* The image is made: @w will not be there any more. */
void places_detach(struct places *p);
/* Forgets all: the image was thrown away. */
void places_clear(struct places *p);
/* The image was published as @name: later ones may take the layers' bytes from there. */
void places_put(struct places *p, enum prefix_folder folder, const struct cb_digest *name);

/* ---- for another image ---- */

struct place_reader; /* opaque */
/* NULL when the record, which must tell of @blocks data blocks, is not good any more; with @whole
 * also when some bytes are lost. */
struct place_reader *place_open(struct store *s, const struct cb_digest *diff_id, uint64_t blocks,
                                bool whole);
void place_free(struct place_reader *r); /* NULL is fine */
/* Where data block @stream lies, and how many follow it there in a row: in @fd (borrowed) from
 * block
 * @block on. *@fd is -1 when the bytes are lost. 0 when there is no such block. */
uint64_t place_find(struct place_reader *r, uint64_t stream, int *fd, uint64_t *block);

/* Removes the records, and the saved bytes, whose images are gone. */
void places_trim(struct store *s);
