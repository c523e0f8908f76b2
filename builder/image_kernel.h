/* image_kernel: the kernel that a finished image brings itself (config.kernel: image).
 *
 * Found without mounting the image: bzImages /boot/vmlinuz* and /lib/modules/RELEASE/vmlinuz. Of
 * several the one with the highest release whose modules are there is taken. */
#pragma once

#include "builder/machine.h"
#include "support/error.h"

struct image_kernel {
    struct kernel kernel; /* image: @dir/vmlinuz; modules: NULL, they are in the image */
    char *from;           /* its path in the image, "/boot/vmlinuz-6.1.0-42-amd64"; owned */
    char *initramfs;      /* @dir/initramfs; owned */
};
void image_kernel_release(struct image_kernel *k);

/* Takes it out of @image into the folder @dir (made), and composes its initramfs there from the
 * image's modules. -CB_E_CONFIG says what the image lacks and how it comes in. */
int image_kernel_take(const char *image, const char *agent_path, const char *dir,
                      struct image_kernel *out, struct cb_error *err);
