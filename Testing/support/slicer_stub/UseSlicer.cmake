# What Slicer's macro does with a scripted module: copies what is listed beside the other modules of the build, and
# installs it from there. A listed file that does not exist stops the configuration, as in Slicer.
function(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(module "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(module_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule does not know ${module_UNPARSED_ARGUMENTS}")
  endif()
  set(copies)
  foreach(listed ${module_SCRIPTS} ${module_RESOURCES})
    set(source ${CMAKE_CURRENT_SOURCE_DIR}/${listed})
    if(NOT EXISTS ${source})
      message(FATAL_ERROR "${module_NAME} lists ${listed}, which does not exist")
    endif()
    set(copy ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}/${listed})
    add_custom_command(OUTPUT ${copy} COMMAND ${CMAKE_COMMAND} -E copy ${source} ${copy} DEPENDS ${source})
    list(APPEND copies ${copy})
    get_filename_component(folder ${listed} DIRECTORY)
    install(
      FILES ${source}
      DESTINATION ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}/${folder}
      COMPONENT RuntimeLibraries
      )
  endforeach()
  add_custom_target(${module_NAME} ALL DEPENDS ${copies})
endfunction()
